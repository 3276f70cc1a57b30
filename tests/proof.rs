//! The proof that the anatomy is right fails where it is wrong.

mod common;

use std::path::Path;

use lstc::rewrite::{Request, compile, rewrite};
use lstc::verify::prove;
use lstc_graph::Weight;
use lstc_models::{Activation, Frozen, Orientation, SublayerKind};
use lstc_passes::{Module, Options};
use lstc_tuned::run::Started;

/// The failed checks of a rewrite whose anatomy is changed before it is proved.
fn failed(change: impl Fn(&mut Module)) -> Vec<String> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/gated_dynamo/model.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("tuned");
    let mut options = Options::default();
    options.method.reduction = 4;
    let request = Request {
        model: (&model).into(),
        options: options.clone(),
        training: Started::default(),
        output: &output,
        force: false,
    };
    rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
    let (mut module, _) = compile(&model, options, None, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
    change(&mut module);
    let version = Some(env!("CARGO_PKG_VERSION"));
    let checks = prove(&output, module, version, common::runtime(), 0, |_| ()).unwrap_or_else(|e| panic!("{e:?}"));
    checks.into_iter().filter(|c| !c.holds).map(|c| format!("{}: {}", c.name, c.measured)).collect()
}

#[test]
fn a_right_anatomy_holds() {
    assert_eq!(failed(|_| ()), Vec::<String>::new());
}

#[test]
fn a_wrong_epsilon_scale_activation_or_matrix_is_found_in_its_block() {
    let found = |failed: Vec<String>, block: &str| {
        println!("{failed:?}");
        assert!(failed.len() == 1 && failed[0].starts_with(block), "{failed:?}");
    };
    let epsilon = failed(|m| m.anatomy.towers[0].blocks[1].sublayers[0].norm.epsilon = 0.1);
    found(epsilon, "block 1 of the encoder");
    let scale = failed(|m| {
        if let SublayerKind::Attention(a) = &mut m.anatomy.towers[1].blocks[0].sublayers[1].kind {
            a.scale = 0.5;
        }
    });
    found(scale, "block 0 of the decoder");
    let activation = failed(|m| {
        if let SublayerKind::FeedForward(f) = &mut m.anatomy.towers[0].blocks[0].sublayers[1].kind {
            f.activation = Activation::GeluErf;
        }
    });
    found(activation, "block 0 of the encoder");
    let matrices = failed(|m| {
        if let SublayerKind::Attention(a) = &mut m.anatomy.towers[1].blocks[1].sublayers[0].kind {
            std::mem::swap(&mut a.q, &mut a.v);
        }
    });
    found(matrices, "block 1 of the decoder");
}

#[test]
fn a_head_other_than_the_sources_is_found() {
    let failed = failed(|m| {
        let weight = m.anatomy.head.linear.weight.weight(&m.graph);
        let mut bytes = weight.bytes().to_vec();
        *bytes.last_mut().expect("a head has elements") ^= 1;
        let other = Weight::new(weight.dtype(), weight.dims().to_vec(), bytes.into(), None).expect("as many bytes");
        m.anatomy.head.linear.weight = Frozen::Unfolded(other);
    });
    assert!(failed.len() == 1 && failed[0].starts_with("the side network's LM head"), "{failed:?}");
}

#[test]
fn the_matrices_of_one_attention_may_lie_differently() {
    let failed = failed(|m| {
        let graph = m.graph.clone();
        let SublayerKind::Attention(a) = &mut m.anatomy.towers[0].blocks[0].sublayers[0].kind else { return };
        let [rows, columns] = a.k.weight.dims(&graph);
        let numbers = a.k.weight.weight(&graph).to_f32().expect("f32");
        let turned: Vec<f32> = (0..rows * columns).map(|at| numbers[at % rows * columns + at / rows]).collect();
        a.k.weight = Frozen::Unfolded(Weight::from_f32(&[columns, rows], &turned));
        a.k.orientation = match a.k.orientation {
            Orientation::InOut => Orientation::OutIn,
            Orientation::OutIn => Orientation::InOut,
        };
    });
    assert_eq!(failed, Vec::<String>::new());
}
