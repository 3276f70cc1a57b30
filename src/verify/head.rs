//! The matrix that the side network's LM head reads, against the one that the source's head reads: every element.

use lstc_models::same_matrix;

use super::{Check, Subject};
use crate::verify::quantised::within_half;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Check> {
    let module = &subject.module;
    let head = &module.anatomy.head.linear;
    let source = (&head.weight.weight(module.source()), head.orientation);
    if let Some(quantised) = &module.quantised_head {
        let furthest = quantised.furthest(&module.graph, source);
        return Ok(within_half("the side network's LM head against the source's", furthest));
    }
    let infer = subject.load("infer.onnx")?;
    let name = module.head_constant().map(|v| module.graph.value(v).name.as_str());
    let found = name.and_then(|name| infer.weight(infer.find(name)?));
    let orientation = module.head_matrix.map(|m| m.orientation);
    let same = found.zip(orientation).is_some_and(|found| same_matrix(found, source));
    let breach = (!same).then(|| "infer.onnx does not read the matrix of the source's head".to_owned());
    let breaches: Vec<String> = breach.into_iter().collect();
    Ok(Check::holds("the side network's LM head is the source's", "byte for byte", &breaches))
}
