//! The graphs that are written: views of one graph, each computing only its outputs.

use lstc_graph::{DType, Dim, Graph, NodeId, Role, Source, ValueId};

use crate::module::Module;
use crate::optimizer::{Target, adamw};

/// The graphs of a rewritten model.
pub struct Artifacts {
    /// One optimizer step: forward, backward, clip, AdamW.
    pub train: Graph,
    /// Loss and the gradient of each parameter.
    pub grad: Graph,
    /// AdamW from given gradients.
    pub apply: Graph,
    /// Loss and logits for given labels, without dropout.
    pub eval: Graph,
    /// Logits, without dropout.
    pub infer: Graph,
}

impl Artifacts {
    /// The graphs with their file names.
    pub fn files(&self) -> [(&'static str, &Graph); 5] {
        [
            ("train.onnx", &self.train),
            ("grad.onnx", &self.grad),
            ("apply.onnx", &self.apply),
            ("eval.onnx", &self.eval),
            ("infer.onnx", &self.infer),
        ]
    }
}

/// Splits a module that ran through the whole pipeline into its graphs.
///
/// # Panics
/// When the pipeline stopped early.
pub fn artifacts(module: &Module) -> Artifacts {
    let graph = &module.graph;
    let step = module.step.as_ref().expect("the pipeline ran to its end");
    let loss = module.loss.expect("the pipeline ran to its end");
    let logits = module.logits.expect("the pipeline ran to its end");
    let gradients = module.parameters.iter().map(|p| p.gradient.expect("the pipeline ran to its end"));

    let mut train_outputs = vec![loss, step.grad_norm];
    train_outputs.extend(step.next.iter().chain(step.moments.iter().flatten()));
    let grad_outputs: Vec<ValueId> = std::iter::once(loss).chain(gradients).collect();
    let quiet = without_dropout(graph);
    Artifacts {
        train: named(interface(graph.slice(&train_outputs), module), "train"),
        grad: named(interface(graph.slice(&grad_outputs), module), "grad"),
        apply: apply(module),
        eval: named(interface(quiet.slice(&[loss, logits]), module), "eval"),
        infer: named(interface(quiet.slice(&[logits]), module), "infer"),
    }
}

fn named(mut graph: Graph, name: &str) -> Graph {
    name.clone_into(&mut graph.name);
    graph
}

/// Every parameter is an input of a graph that computes from the side network, whether or not it needs all of them.
fn interface(mut graph: Graph, module: &Module) -> Graph {
    let unused = module.parameters.iter().map(|p| p.value).filter(|v| !graph.inputs.contains(v));
    let unused: Vec<ValueId> = unused.collect();
    graph.inputs.extend(unused);
    let model: Vec<ValueId> = graph.inputs.iter().copied().filter(|v| !graph.value(*v).is_trainable()).collect();
    graph.inputs.sort_by_key(|v| !model.contains(v));
    graph
}

/// The graph with every dropout of the side network taken out.
fn without_dropout(graph: &Graph) -> Graph {
    let mut quiet = graph.clone();
    let dropouts: Vec<NodeId> = graph.node_ids().filter(|id| is_side_dropout(graph, *id)).collect();
    for id in dropouts {
        if let (Some(x), Some(y)) = (graph.node(id).input(0), graph.node(id).output(0)) {
            quiet.redirect(y, resolve(graph, x));
        }
    }
    quiet
}

fn is_side_dropout(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).is("Dropout") && graph.node(id).origin != lstc_graph::Origin::SOURCE
}

/// After dropouts of dropouts.
fn resolve(graph: &Graph, value: ValueId) -> ValueId {
    match graph.value(value).source {
        Source::Node(id, 0) if is_side_dropout(graph, id) => {
            graph.node(id).input(0).map_or(value, |x| resolve(graph, x))
        }
        _ => value,
    }
}

/// AdamW alone, from gradients that are inputs.
fn apply(module: &Module) -> Graph {
    let mut graph = Graph::new("apply", module.graph.opset());
    graph.ir_version = module.graph.ir_version;
    let input = |graph: &mut Graph, name: &str, dims: &[usize], role| {
        let shape: Vec<Dim> = dims.iter().map(|d| Dim::Value(*d as i32)).collect();
        graph.add_input(name, DType::F32, &shape, role).expect("an empty graph has no names")
    };
    let targets: Vec<Target> = module
        .parameters
        .iter()
        .map(|p| {
            let value = input(&mut graph, &p.name, &p.dims, Role::Trainable);
            let gradient = input(&mut graph, &format!("{}.grad", p.name), &p.dims, Role::Frozen);
            Target::new(p, value, gradient)
        })
        .collect();
    let step = adamw(&mut graph, &targets, &module.options.optimizer).expect("an empty graph has no names");
    graph.outputs =
        std::iter::once(step.grad_norm).chain(step.next).chain(step.moments.into_iter().flatten()).collect();
    graph
}
