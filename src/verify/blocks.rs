//! Each block at full width, emitted in the side network's canonical form with the backbone's weights, compared with the
//! backbone itself: the source's own, in whatever precision the written graphs compute its products.

use lstc_graph::{Builder, DType, Graph, Origin, ValueId, data_to_run, encode};
use lstc_models::{Attention, AttentionKind, SublayerKind};
use lstc_passes::block::{
    AttentionWeights, Dropout, FeedForwardWeights, MatrixValue, Rows, attention, feed_forward, norm,
};

use super::precision::Arithmetic;
use super::wide::widen;
use super::{Check, Subject, difference, give, run, sample};
use crate::runtime::{Optimisation, Tensor};
use crate::scratch::Scratch;

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
    for tower in 0..module.anatomy.towers.len() {
        for index in 0..module.anatomy.towers[tower].blocks.len() {
            let block = &module.anatomy.towers[tower].blocks[index];
            let b = Builder::new(&mut graph, Origin::pass("verify"));
            let proof = emit(subject, &b, tower, index);
            let name = format!("block {index} of the {} at r=1", module.anatomy.towers[tower].kind);
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
fn emit(subject: &Subject, b: &Builder, tower: usize, index: usize) -> ValueId {
    let anatomy = &subject.module.anatomy;
    let rows_of = |tower: usize| {
        let t = &anatomy.towers[tower];
        Rows { batch: t.batch.clone(), length: t.length.clone(), like: t.embedding }
    };
    let (rows, this) = (rows_of(tower), &anatomy.towers[tower]);
    let block = &this.blocks[index];
    b.scope(&format!("proof/{}.{index}", this.kind));
    let mut state = rows.flatten(b, b.cast(block.input, DType::F32), this.width);
    for layer in &block.sublayers {
        let x = norm(b, state, b.cast(layer.norm.weight, DType::F32), layer.norm.epsilon, this.width);
        let branch = match &layer.kind {
            SublayerKind::Attention(a) => {
                let context = (a.kind == AttentionKind::Cross).then(|| {
                    let before = &anatomy.towers[tower - 1];
                    let keys = rows_of(tower - 1);
                    (keys.flatten(b, b.cast(before.output, DType::F32), before.width), keys)
                });
                let context = context.as_ref().map(|(value, rows)| (*value, rows));
                attention(b, a, &weights(b, a), (x, &rows), context, Dropout::NONE)
            }
            SublayerKind::FeedForward(f) => {
                let weights = {
                    let matrix = |l| MatrixValue::frozen(b, l);
                    FeedForwardWeights { inner: f.inner.iter().map(matrix).collect(), outer: matrix(&f.outer) }
                };
                feed_forward(b, f, &weights, x, Dropout::NONE)
            }
        };
        state = b.add(state, branch);
    }
    rows.unflatten(b, state, &[this.width])
}

fn weights(b: &Builder, a: &Attention) -> AttentionWeights {
    AttentionWeights {
        q: MatrixValue::frozen(b, &a.q),
        k: MatrixValue::frozen(b, &a.k),
        v: MatrixValue::frozen(b, &a.v),
        o: MatrixValue::frozen(b, &a.o),
        table: a.relative().map(|r| r.table.emit(b)),
        head_width: a.head_width,
        together: a.heads,
    }
}
