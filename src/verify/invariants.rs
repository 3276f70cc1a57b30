//! The four invariants of a rewrite, in the graphs on disk: the check that the compiler makes after every pass.

use lstc_graph::{Role, ValueId};
use lstc_passes::contract::{Breaches, Compared};

use super::{Check, Subject};

/// The graphs that hold the backbone.
const FILES: [&str; 4] = ["train.onnx", "grad.onnx", "eval.onnx", "infer.onnx"];

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let module = &subject.module;
    let contract = module.contract();
    let mut found: [Vec<String>; 4] = Default::default();
    for file in FILES.into_iter().chain(["apply.onnx"]) {
        let mut graph = subject.load(file)?;
        let parameters: Vec<ValueId> = module.parameters.iter().filter_map(|p| graph.find(&p.name)).collect();
        if parameters.len() != module.parameters.len() {
            found[0].push(format!("{file} lacks parameters"));
        }
        for parameter in parameters {
            graph.set_role(parameter, Role::Trainable);
        }
        // On disk values are known by their names.
        let of = |value: ValueId| module.graph.find(&graph.value(value).name);
        let Breaches { frozen, reads, backbone, shapes } =
            contract.breaches(&Compared { graph: &graph, model: &module.graph, of: &of });
        for (found, breaches) in found.iter_mut().zip([frozen, reads, backbone, shapes]) {
            found.extend(breaches.iter().map(|breach| format!("{file}: {breach}")));
        }
    }
    let [frozen, reads, backbone, shapes] = found;
    Ok(vec![
        Check::holds("1. no frozen value depends on a trainable one", "in all graphs", &frozen),
        Check::holds("2. nothing reads the backbone beyond the cut", "in all graphs", &reads),
        Check::holds(third(subject), "byte for byte", &backbone),
        Check::holds("4. every value has a type and a shape", "in all graphs", &shapes),
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
