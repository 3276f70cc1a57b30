//! Values that fixed sizes turned into constants, compared with the source model run at those sizes.

use lstc_base::scratch::Scratch;
use lstc_graph::{DType, ValueId, Weight, data_to_run, encode};
use lstc_runtime::{Optimisation, Tensor};

use super::backbone::{same_bits, source_of};
use super::{Check, Subject};
use crate::probe::{give, run, sample};

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let module = &subject.module;
    let uses = module.graph.uses();
    let live = |v: &ValueId| module.is_folded(*v) && !uses.of(*v).is_empty();
    let folded: Vec<ValueId> = module.graph.value_ids().filter(live).collect();
    if folded.is_empty() {
        return Ok(Vec::new());
    }
    // Passes may have renamed the values; ids are the source's.
    let mut source = source_of(subject)?;
    let names = give(&mut source, &folded);
    let source = source.slice(&source.outputs);
    let scratch = Scratch::new()?;
    let (data, folder) = data_to_run(&[&source], scratch.path())?;
    let session = subject.runtime.session().optimisation(Optimisation::Off);
    let mut session = session.load(&encode(&source, &data), Some(&folder))?;
    let computed = run(&mut session, &sample::inputs(module, subject.seed)?, &names)?;

    let constant = |v: &ValueId| module.graph.weight(*v).and_then(tensor);
    let differs = |(v, computed): (&ValueId, &Tensor)| !constant(v).is_some_and(|c| same_bits(&c, computed));
    let pairs = folded.iter().zip(&computed).zip(&names);
    let breaches: Vec<String> = pairs
        .filter(|(pair, _)| differs(*pair))
        .map(|(_, name)| format!("`{name}` is not what the source computes"))
        .collect();
    Ok(vec![Check::holds(format!("{} values that fixed sizes decide", folded.len()), "bit for bit", &breaches)])
}

/// A constant as the runtime would give it, floats in f32.
fn tensor(weight: &Weight) -> Option<Tensor> {
    let shape = ndarray::IxDyn(weight.dims());
    let ints = |w: &Weight| ndarray::ArrayD::from_shape_vec(shape.clone(), w.to_i64()?).ok();
    Some(match weight.dtype() {
        dtype if dtype.is_float() => ndarray::ArrayD::from_shape_vec(shape.clone(), weight.to_f32()?).ok()?.into(),
        DType::I64 => ints(weight)?.into(),
        DType::I32 => ints(weight)?.mapv(|v| v as i32).into(),
        DType::Bool => ints(weight)?.mapv(|v| v != 0).into(),
        _ => return None,
    })
}
