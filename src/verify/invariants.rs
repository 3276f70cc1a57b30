//! The four invariants of a rewrite, in the graphs on disk.

use std::collections::HashSet;

use lstc_graph::{Graph, Role, ValueId};
use lstc_passes::is_backbone;

use super::{Check, Subject};

/// The graphs that hold the backbone.
const FILES: [&str; 4] = ["train.onnx", "grad.onnx", "eval.onnx", "infer.onnx"];

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let (mut frozen, mut cut, mut backbone, mut shaped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for file in FILES.into_iter().chain(["apply.onnx"]) {
        let mut graph = subject.load(file)?;
        let parameters: Vec<ValueId> = subject.module.parameters.iter().filter_map(|p| graph.find(&p.name)).collect();
        if parameters.len() != subject.module.parameters.len() {
            frozen.push(format!("{file} lacks parameters"));
        }
        for parameter in parameters {
            graph.set_role(parameter, Role::Trainable);
        }
        frozen.extend(frozen_depends(&graph).into_iter().map(|b| format!("{file}: {b}")));
        cut.extend(reads_beyond(subject, &graph).into_iter().map(|b| format!("{file}: {b}")));
        backbone.extend(changes(subject, &graph).into_iter().map(|b| format!("{file}: {b}")));
        shaped.extend(lstc_graph::verify(&graph).into_iter().map(|f| format!("{file}: {f}")));
    }
    Ok(vec![
        Check::holds("1. no frozen value depends on a trainable one", "in all graphs", &frozen),
        Check::holds("2. nothing reads the backbone beyond the cut", "in all graphs", &cut),
        Check::holds(third(subject), "byte for byte", &backbone),
        Check::holds("4. every value has a type and a shape", "in all graphs", &shaped),
    ])
}

/// What the third invariant says of this backbone.
fn third(subject: &Subject) -> &'static str {
    match subject.module.quantised {
        None => "3. the backbone's nodes and weights are the source's",
        Some(_) => {
            "3. the backbone's nodes and weights are the source's, or the compiler's for a product and around it"
        }
    }
}

fn is_source(graph: &Graph, id: lstc_graph::NodeId) -> bool {
    is_backbone(&graph.node(id).origin)
}

fn frozen_depends(graph: &Graph) -> Vec<String> {
    let touched = graph.dependents(graph.value_ids().filter(|v| graph.value(*v).is_trainable()));
    let breach = |id: &lstc_graph::NodeId| {
        is_source(graph, *id) && graph.node(*id).outputs.iter().flatten().any(|v| touched[v.index()])
    };
    graph.node_ids().filter(breach).map(|id| format!("`{}`", graph.node(id).name)).collect()
}

/// New nodes that read a backbone value outside the cut.
fn reads_beyond(subject: &Subject, graph: &Graph) -> Vec<String> {
    let module = &subject.module;
    let of_backbone: HashSet<&str> =
        module.graph.value_ids().filter(|v| !module.is_new(*v)).map(|v| module.graph.value(v).name.as_str()).collect();
    let allowed: HashSet<&str> = module.cut.iter().map(|v| module.graph.value(*v).name.as_str()).collect();
    let mut breaches = Vec::new();
    for id in graph.node_ids().filter(|id| !is_source(graph, *id)) {
        let node = graph.node(id);
        for value in node.inputs.iter().flatten().map(|v| graph.value(*v).name.as_str()) {
            if of_backbone.contains(value) && !allowed.contains(value) {
                breaches.push(format!("`{}` reads `{value}`", node.name));
            }
        }
    }
    breaches
}

/// Nodes and weights of the backbone that are not the source's.
fn changes(subject: &Subject, graph: &Graph) -> Vec<String> {
    let source = &subject.module.graph;
    let names = |g: &Graph, values: &[Option<ValueId>]| -> Vec<String> {
        values.iter().map(|v| v.map_or_else(String::new, |v| g.value(v).name.clone())).collect()
    };
    let mut breaches = Vec::new();
    for id in graph.node_ids().filter(|id| is_source(graph, *id)) {
        let node = graph.node(id);
        let original = node
            .output(0)
            .and_then(|v| source.find(&graph.value(v).name))
            .and_then(|v| source.producer_of(v))
            .map(|(id, _)| source.node(id));
        let same = original.is_some_and(|original| {
            original.op == node.op
                && original.domain == node.domain
                && original.attributes == node.attributes
                && names(source, &original.inputs) == names(graph, &node.inputs)
                && names(source, &original.outputs) == names(graph, &node.outputs)
        });
        if !same {
            breaches.push(format!("node `{}` is not the source's", node.name));
        }
        for value in node.inputs.iter().flatten() {
            let Some(weight) = graph.weight(*value) else { continue };
            let name = &graph.value(*value).name;
            if source.find(name).and_then(|v| source.weight(v)) != Some(weight) {
                breaches.push(format!("weight `{name}` is not the source's"));
            }
        }
    }
    breaches
}
