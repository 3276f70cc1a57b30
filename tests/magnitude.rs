//! Pruned initialisation against a PyTorch transcription of the algorithm: the kept indices of every step, and the
//! weights themselves.

#[path = "common/cases.rs"]
mod cases;

use std::collections::BTreeMap;

use lstc::rewrite::compile;
use lstc_passes::ladder::prune::kept_by_magnitude;
use lstc_passes::options::{Init, Projection, Projections};
use lstc_tuned::config::Config;
use safetensors::{Dtype, SafeTensors};

#[test]
fn kept_indices_and_weights_are_the_transcriptions() {
    for case in cases::with("magnitude.safetensors", 4) {
        let mut options = Config::read(&case.join("lst.yaml")).expect("a configuration").options();
        options.method.init = Init::Magnitude;
        let reduction = options.method.reduction;
        let (module, _) =
            compile(case.join("model.onnx"), options, Some("prune"), |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
        let bytes = std::fs::read(case.join("magnitude.safetensors")).expect("the expectation is committed");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");

        let kept: BTreeMap<String, Vec<i64>> = kept_by_magnitude(&module.graph, &module.anatomy, reduction)
            .into_iter()
            .map(|k| (format!("kept.{}", k.place), k.indices.iter().map(|i| *i as i64).collect()))
            .collect();
        let expected: BTreeMap<String, Vec<i64>> = file
            .iter()
            .filter(|(name, _)| name.starts_with("kept."))
            .map(|(name, view)| {
                assert_eq!(view.dtype(), Dtype::I64);
                let indices = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")));
                (name.to_owned(), indices.collect())
            })
            .collect();
        assert_eq!(kept, expected, "{}", case.display());

        let mut compared = 0;
        for (planned, initial) in module.plan.parameters.iter().zip(&module.initial) {
            let Ok(view) = file.tensor(&planned.name) else { continue };
            let weights = view.data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes")));
            assert_eq!(view.shape(), initial.dims(), "{}", planned.name);
            assert!(weights.eq(initial.value().iter().copied()), "{}: {}", case.display(), planned.name);
            compared += 1;
        }
        let steps = kept.len();
        println!("{}: {steps} kept sets and {compared} initial tensors are equal", case.display());
        assert!(compared > 10);
    }
}

/// `aligned`: each row of a down-projection, and each column of the up-projection, has a single 1, at the features which the
/// transcription keeps where that projection meets the residual stream.
#[test]
fn aligned_projections_select_what_the_blocks_were_cut_for() {
    for case in cases::with("magnitude.safetensors", 4) {
        let mut options = Config::read(&case.join("lst.yaml")).expect("a configuration").options();
        options.method.init = Init::Magnitude;
        options.method.init_projections = Some(Projections::both(Projection::Aligned));
        let (module, _) =
            compile(case.join("model.onnx"), options, Some("prune"), |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
        let bytes = std::fs::read(case.join("magnitude.safetensors")).expect("the expectation is committed");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let kept = |place: &str| -> Vec<usize> {
            let view = file.tensor(&format!("kept.{place}")).unwrap_or_else(|e| panic!("{place}: {e}"));
            let indices = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")));
            indices.map(|index| usize::try_from(index).expect("an index")).collect()
        };
        // The kept set before a block is what the last sublayer before it writes.
        let mut before = "shared".to_owned();
        let mut selected = 0;
        let values: BTreeMap<&str, _> =
            module.plan.parameters.iter().zip(&module.initial).map(|(p, i)| (p.name.as_str(), i.value())).collect();
        let mut check = |name: String, transposed: bool, place: &str| {
            let Some(value) = values.get(name.as_str()) else { return };
            let found = value.view().into_dimensionality::<ndarray::Ix2>().expect("a matrix");
            let found = if transposed { found.reversed_axes() } else { found };
            let ones: Vec<usize> = found
                .rows()
                .into_iter()
                .map(|row| {
                    assert!(
                        (row.sum() - 1.0).abs() < f32::EPSILON && row.iter().all(|v| *v == 0.0 || *v == 1.0),
                        "{name}"
                    );
                    row.iter().position(|v| *v == 1.0).expect("a 1")
                })
                .collect();
            assert_eq!(ones, kept(place), "{}: {name}", case.display());
            selected += 1;
        };
        for tower in &module.anatomy.towers {
            let kind = tower.kind;
            check(format!("{kind}.side_first_downsample.weight"), false, &before);
            for (block, layers) in tower.blocks.iter().enumerate() {
                check(format!("{kind}.side_downsamples.{block}.weight"), false, &before);
                before = format!("{kind}.{block}.{}.out", layers.sublayers.len() - 1);
            }
        }
        check("side_final_upsample.weight".to_owned(), true, &before);
        println!("{}: {selected} aligned projections", case.display());
        assert!(selected >= 5);
    }
}

/// `uniform` stays within the bound that PyTorch's `nn.Linear` has, and reaches for it; `normal` has its deviation.
#[test]
fn drawn_projections_have_their_spread() {
    let case = &cases::with("magnitude.safetensors", 4)[0];
    let drawn = |projections: &str| {
        let mut options = Config::read(&case.join("lst.yaml")).expect("a configuration").options();
        options.method.init_projections = Some(projections.parse().expect("a start for projections"));
        let (module, _) = compile(case.join("model.onnx"), options, Some("prune"), |_, _| ()).expect("it compiles");
        let planned = module.plan.parameters.iter().zip(&module.initial);
        let projections = planned.filter(|(p, _)| p.name.contains("sample") && p.name.ends_with("weight"));
        projections.map(|(p, initial)| (p.name.clone(), initial.value().into_owned())).collect::<Vec<_>>()
    };
    for (name, value) in drawn("uniform") {
        let bound = (*value.shape().last().expect("a matrix") as f32).sqrt().recip();
        let largest = value.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
    }
    for (name, value) in drawn("normal:0.5,normal:0.25") {
        let expected = if name.contains("upsample") { 0.25 } else { 0.5 };
        let deviation = (value.iter().map(|v| v * v).sum::<f32>() / value.len() as f32).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.2, "{name}: {deviation}, not {expected}");
    }
}
