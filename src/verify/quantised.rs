//! A backbone in another precision: its matrices compared with the source's, and its taps with the manifest's figures.

use lstc_base::scratch::Scratch;
use lstc_models::Orientation;
use lstc_passes::quantise::{Quantised, QuantisedProduct};
use lstc_tuned::quantised::{Measured, TapError, spread};
use lstc_tuned::{TOKENIZER, manifest};

use super::{Check, Subject};
use crate::rewrite::precision::{Given, feeds, measure};

/// The rounding of the step itself, in steps.
const HALF: f64 = 0.5 + 1e-4;

/// How far an error may be from the recorded one, relative and absolute: on another machine sums and activations round
/// differently.
const RELATIVE: f64 = 0.1;
const ABSOLUTE: f64 = 1e-6;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    if let Some(quantised) = &subject.module.quantised {
        checks.push(matrices(subject, quantised));
        checks.extend(errors(subject)?);
    }
    Ok(checks)
}

/// A check of the largest error of matrices, in steps.
pub(super) fn within_half(name: impl Into<String>, furthest: Result<f64, String>) -> Check {
    match furthest {
        Ok(steps) => Check {
            name: name.into(),
            measured: format!("{steps:.4} steps"),
            bound: "half a step".to_owned(),
            holds: steps <= HALF,
        },
        Err(reason) => Check::holds(name, "", &[reason]),
    }
}

/// Every matrix compared with its source's, in steps of its scales.
fn matrices(subject: &Subject, quantised: &Quantised) -> Check {
    let name = format!("{} matrices against the source's", quantised.products.len());
    let of = |product| furthest(subject, quantised, product);
    let worst = quantised.products.iter().try_fold(0.0, |worst: f64, product| Ok(worst.max(of(product)?)));
    within_half(name, worst)
}

/// The largest error of a matrix, in steps.
fn furthest(subject: &Subject, quantised: &Quantised, product: &QuantisedProduct) -> Result<f64, String> {
    let graph = &subject.module.graph;
    let (found, half) = quantised.dequantised(graph, product)?;
    let gone = || "a matrix of the source is missing".to_owned();
    let weight = subject.module.source().weight(product.source.weight).ok_or_else(gone)?;
    let wanted = weight.to_f32().ok_or_else(gone)?;
    weight.release();
    let &[rows, columns] = weight.dims() else { return Err(gone()) };
    if found.len() != wanted.len() {
        return Err("a matrix has other dimensions than its source's".to_owned());
    }
    let at = |i: usize| match product.source.orientation {
        Orientation::InOut => i,
        Orientation::OutIn => i % rows * columns + i / rows,
    };
    let steps = (0..found.len()).map(|i| {
        let apart = (f64::from(found[i]) - f64::from(wanted[at(i)])).abs();
        match apart {
            // Smaller than any step.
            _ if apart <= f64::from(f32::MIN_POSITIVE) * 127.0 => 0.0,
            _ => apart / (2.0 * f64::from(half[i])),
        }
    });
    Ok(steps.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) }))
}

/// The errors of taps and logits, measured again on the recorded sample.
fn errors(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let name = "the errors that the manifest records";
    let (record, config) = (manifest::unchecked_record(subject.directory)?, manifest::read(subject.directory)?);
    let Some(recorded) = record.quantised else {
        return Ok(vec![Check::holds(name, "", &["the manifest records none".to_owned()])]);
    };
    let tokenizer = subject.directory.join(TOKENIZER);
    let tokenizer = tokenizer.is_file().then_some(tokenizer);
    let given = Given { reading: &config.data, tokenizer: tokenizer.as_deref(), special: record.tokens };
    let feeds = match feeds(&recorded.sample, &subject.module, &given) {
        Ok(feeds) => feeds,
        Err(error) => return Ok(vec![Check::holds(name, "", &[format!("{error:#}")])]),
    };
    let scratch = Scratch::new()?;
    let measured = measure(subject.runtime, &subject.module, &feeds, scratch.path())?;
    let breaches = differences(&measured, &recorded.measured);
    let (most, median) = spread(&measured.taps);
    let good = format!("{median:.1e} at a tap (median), {most:.1e} at most, logits {:.1e}", measured.logits);
    Ok(vec![Check::holds(format!("{name}, on {}", recorded.sample), good, &breaches)])
}

/// Errors that differ from the recorded ones.
fn differences(measured: &Measured, recorded: &Measured) -> Vec<String> {
    let same = |found: f64, wanted: f64| found == wanted || (found - wanted).abs() <= RELATIVE * wanted + ABSOLUTE;
    let mut breaches = Vec::new();
    if measured.taps.len() != recorded.taps.len() {
        breaches.push(format!("{} taps are recorded, but there are {}", recorded.taps.len(), measured.taps.len()));
    }
    for (found, wanted) in measured.taps.iter().zip(&recorded.taps) {
        let TapError { tower, block, error } = found;
        if (tower, block) != (&wanted.tower, &wanted.block) || !same(*error, wanted.error) {
            breaches.push(format!("block {block} of the {tower}: {error:.2e}, {:.2e} recorded", wanted.error));
        }
    }
    match (measured.output, recorded.output) {
        (None, None) => {}
        (Some(found), Some(wanted)) if same(found, wanted) => {}
        (found, wanted) => {
            let shown = |error: Option<f64>| error.map_or("none".to_owned(), |error| format!("{error:.2e}"));
            breaches.push(format!("the final output: {}, {} recorded", shown(found), shown(wanted)));
        }
    }
    if !same(measured.logits, recorded.logits) {
        breaches.push(format!("the logits: {:.2e}, {:.2e} recorded", measured.logits, recorded.logits));
    }
    breaches
}
