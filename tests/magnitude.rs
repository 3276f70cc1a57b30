//! Pruned initialisation against a PyTorch transcription of the algorithm: the kept indices of every step, and the
//! weights themselves.

#[path = "common/cases.rs"]
mod cases;

use std::collections::BTreeMap;

use lstc::rewrite::compile;
use lstc::rewrite::config::Config;
use lstc_passes::options::Init;
use lstc_passes::prune::kept_by_magnitude;
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
