//! Each block at full width, emitted in the side network's canonical form with the backbone's weights, compared with the
//! backbone itself: the source's own, in whatever precision the written graphs compute its products.

use lstc_base::scratch::Scratch;
use lstc_graph::{Builder, DType, Graph, Origin, ValueId, data_to_run, encode};
use lstc_models::TowerId;
use lstc_passes::block::{Dropout, FrozenWeights, Rows, Streams, block};
use lstc_runtime::{Optimisation, Tensor};

use super::precision::Arithmetic;
use super::wide::widen;
use super::{Check, Subject};
use crate::probe::{difference, give, run, sample};

/// Error relative to the block's largest output.
const OUTPUT: f64 = 1e-5;
/// The rounding error of f32 in the block, measured against the same nodes in f64, times this is the bound if larger: the
/// scores of some models are so large that two correct orders of summation differ by more than 1e-5.
const ROUNDINGS: f64 = 4.0;
/// Error relative to what the block adds to the stream: if the stream is a thousand times larger, this is what rounding
/// of the stream leaves.
const UPDATE: f64 = 1e-3;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let module = &subject.module;
    let mut graph = module.unquantised().clone();
    let mut proofs: Vec<(String, ValueId, ValueId, ValueId)> = Vec::new();
    for (tower, anatomy) in module.anatomy.by_id() {
        for (index, block) in anatomy.blocks.iter().enumerate() {
            let b = Builder::new(&mut graph, Origin::pass("verify"));
            let proof = emit(subject, &b, tower, index);
            let name = format!("block {index} of the {} at r=1", anatomy.kind);
            proofs.push((name, block.input, block.output, proof));
        }
    }
    graph.outputs = Vec::new();
    for (_, before, after, proof) in &proofs {
        for value in [before, after, proof] {
            if !graph.outputs.contains(value) {
                graph.outputs.push(*value);
            }
        }
    }
    let outputs = graph.outputs.clone();
    let names = give(&mut graph, &outputs);
    let graph = graph.slice(&graph.outputs);
    let scratch = Scratch::new()?;
    let (data, folder) = data_to_run(&[&graph], scratch.path())?;
    let inputs = sample::inputs(module, subject.seed)?;
    let evaluate = |graph: &Graph| -> anyhow::Result<Vec<Tensor>> {
        let session = subject.runtime.session().optimisation(Optimisation::Off);
        let results = run(&mut session.load(&encode(graph, &data), Some(&folder))?, &inputs, &names)?;
        Ok(results.into_iter().map(narrow).collect())
    };
    let (results, exact) = (evaluate(&graph)?, evaluate(&widen(&graph))?);
    let place = |v: ValueId| outputs.iter().position(|o| *o == v).expect("it is an output");
    let result = |v: ValueId| &results[place(v)];

    let arithmetic = Arithmetic::of(module);
    let mut checks = Vec::new();
    for (name, before, after, proof) in proofs {
        let (apart, largest) = difference(result(proof), result(after));
        let (update, _) = difference(result(after), result(before));
        let (rounding, _) = difference(result(proof), &exact[place(proof)]);
        let relative = |error: f64, to: f64| error / to.max(f64::MIN_POSITIVE);
        let (of_output, of_update) = (relative(apart, largest), relative(apart, update));
        let bound = arithmetic.bound(OUTPUT.max(ROUNDINGS * relative(rounding, largest)));
        let of_stream = arithmetic.bound(UPDATE);
        checks.push(Check {
            name,
            measured: format!("{of_output:.1e} of the output, {of_update:.1e} of the update"),
            bound: format!("{bound:.0e}, {of_stream:.0e}"),
            holds: of_output <= bound && of_update <= of_stream,
        });
    }
    Ok(checks)
}

/// A result as f32, whatever precision it was computed in.
fn narrow(result: Tensor) -> Tensor {
    match result {
        Tensor::F64(values) => values.mapv(|v| v as f32).into(),
        other => other,
    }
}

/// h of a block from h of the previous one.
fn emit(subject: &Subject, b: &Builder, tower: TowerId, index: usize) -> ValueId {
    let anatomy = &subject.module.anatomy;
    let rows_of = |tower: TowerId| {
        let t = anatomy.tower(tower);
        Rows { batch: t.batch.clone(), length: t.length.clone(), like: t.embedding }
    };
    let (rows, this) = (rows_of(tower), anatomy.tower(tower));
    b.scope(&format!("proof/{}.{index}", this.kind));
    let attended = this.blocks[index].sublayers.iter().find_map(|layer| anatomy.attends_to(layer));
    let context = attended.map(|tower| {
        let (before, keys) = (anatomy.tower(tower), rows_of(tower));
        (keys.flatten(b, b.cast(before.output, DType::F32), before.width), keys)
    });
    let context = context.as_ref().map(|(value, rows)| (*value, rows));
    let streams = Streams { rows: &rows, context, dropout: Dropout::NONE, together: None };
    let before = rows.flatten(b, b.cast(this.blocks[index].input, DType::F32), this.width);
    let weights = FrozenWeights { width: this.width };
    let after = block(b, &this.blocks[index], (tower, index), &weights, &streams, before);
    rows.unflatten(b, after, &[this.width])
}
