//! The backbone in another precision: against PyTorch, through every command, and with something wrong in it.

#[path = "matrix/archive.rs"]
mod archive;
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use lstc::rewrite::compile;
use lstc_graph::{Attribute, Attributes, Builder, DType, DataFiles, Graph, Origin, ValueId, Weight, encode, load};
use lstc_models::{SublayerKind, TowerKind};
use lstc_passes::options::{BackboneOptions, Int8Weights, Precision};
use lstc_passes::quantise::matrix::BlockBits;
use lstc_passes::quantise::{NewMatrix, QuantisedProduct};
use lstc_passes::{Module, Options};
use lstc_runtime::{Optimisation, Tensor};
use lstc_tuned::opened::on_cpu;
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};

use cli::{lstc, stderr, stdout, text};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

/// What PyTorch makes of a case in double precision, and the batch that it is of.
fn expected(case: &Path) -> HashMap<String, Tensor> {
    let bytes = fs::read(case.join("expected.safetensors")).expect("it is committed");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors = file.iter().map(|(name, view)| {
        let (shape, data) = (IxDyn(view.shape()), view.data());
        let tensor: Tensor = match view.dtype() {
            Dtype::F32 => {
                let v = data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes")));
                ArrayD::from_shape_vec(shape, v.collect()).expect("the shape fits").into()
            }
            _ => {
                let v = data.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")));
                ArrayD::from_shape_vec(shape, v.collect()).expect("the shape fits").into()
            }
        };
        (name.to_owned(), tensor)
    });
    tensors.collect()
}

/// Root of the squared differences' sum, relative to that of the squares.
fn relative(found: &Tensor, wanted: &Tensor) -> f64 {
    let (found, wanted) = (found.as_f32().expect("f32"), wanted.as_f32().expect("f32"));
    assert_eq!(found.shape(), wanted.shape());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = squares(&mut found.iter().zip(&wanted).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / squares(&mut wanted.iter().map(|v| f64::from(*v)))
}

fn options(precision: Precision, form: Int8Weights) -> Options {
    let mut options = Options::default();
    options.method.reduction = 4;
    options.backbone.precision = precision;
    options.backbone.int8_weights = (precision == Precision::Int8).then_some(form);
    options
}

fn compiled(case_name: &str, options: &Options) -> Module {
    let model = case(case_name).join("model.onnx");
    compile(&model, options.clone(), None, |_, _| ()).unwrap_or_else(|e| panic!("{case_name}: {e:?}")).0
}

/// The errors of all taps and of the logits against PyTorch's.
fn errors(module: &Module, case: &Path) -> Vec<f64> {
    let expected = expected(case);
    let mut graph = module.graph.clone();
    let mut wanted = Vec::new();
    let mut outputs = Vec::new();
    for tower in &module.anatomy.towers {
        for (index, block) in tower.blocks.iter().enumerate() {
            let stack = if tower.kind == TowerKind::Encoder { "encoder" } else { "decoder" };
            wanted.push(&expected[&format!("tap.{stack}.{index}")]);
            outputs.push(block.output);
        }
    }
    wanted.push(&expected["backbone.logits"]);
    outputs.push(module.anatomy.head.logits);
    graph.outputs = outputs;
    let graph = graph.slice(&graph.outputs);
    let graph = on_cpu(&graph);
    let names: Vec<&str> = graph.outputs.iter().map(|v| graph.value(*v).name.as_str()).collect();
    let mut session =
        common::runtime().session().load(&encode(&graph, &DataFiles::default()), None).expect("the graph runs");
    let taken: Vec<String> = session.inputs().iter().map(|port| port.name.clone()).collect();
    let inputs: Vec<(&str, &Tensor)> = taken.iter().map(|name| (name.as_str(), &expected[name])).collect();
    let found = session.run(&inputs, &names).expect("the graph runs");
    found.iter().zip(wanted).map(|(found, wanted)| relative(found, wanted)).collect()
}

/// Rounding to steps s leaves s / sqrt(12) on average: of a weight that is drawn from a normal distribution, whose largest
/// of a column is about 3 deviations, 3 / 127 / 3.5 = 0.7 % in 8 bits, and of a range of 4.4 deviations in a block of 32,
/// 4.4 / 15 / 3.5 = 8.5 % in 4 bits; of an activation over a range of 8 deviations 8 / 255 / 3.5 = 0.9 %. A product has
/// both, and a tap of these cases is the sum of some six products in a row, which multiply what the ones before left: the
/// bounds are six times that of one product. In f16 and bf16 rounding leaves at most 2^-11 and 2^-8 of each operand.
const BOUNDS: [(Precision, f64); 5] = [
    (Precision::Fp32, 1e-5),
    (Precision::Fp16, 6.0 * 2.0 / 2048.0),
    (Precision::Bf16, 6.0 * 2.0 / 256.0),
    (Precision::Int8, 6.0 * 0.0114),
    (Precision::Int4, 6.0 * 0.085),
];

/// Of a product in blocks of 8 bits: the largest of 32 of a normal distribution is about 2.2 deviations, so that the weight has
/// 2.2 / 127 / 3.5 = 0.5 %, and the activation, which the kernel quantises in the same blocks, as much.
const BLOCKS_OF_8: f64 = 6.0 * 0.0071;

#[test]
fn taps_and_logits_are_pytorchs_to_what_the_precision_leaves() {
    for name in ["gated_dynamo", "relu_torchscript", "single_head_static", "external_weights"] {
        let mut before = 0.0;
        for (precision, bound) in BOUNDS {
            let module = compiled(name, &options(precision, Int8Weights::Signed));
            let errors = errors(&module, &case(name));
            let worst = errors.iter().fold(0.0, |w: f64, e| if e.is_nan() { f64::INFINITY } else { w.max(*e) });
            println!("{name} {precision}: {worst:.2e} of at most {bound:.2e}");
            assert!(worst <= bound, "{name} {precision}: {errors:?}");
            assert!(worst > before || precision == Precision::Fp32, "{precision} loses more than the one before");
            before = worst;
        }
    }
}

#[test]
fn blocks_of_8_bits_lose_what_rounding_leaves_and_say_which_they_are() {
    for name in ["gated_dynamo", "relu_torchscript"] {
        let mut options = options(Precision::Int4, Int8Weights::Signed);
        options.backbone.max_tap_error = Some(BackboneOptions::NO_LIMIT);
        let module = compiled(name, &options);
        let quantised = module.quantised.as_ref().expect("it was quantised");
        let names = quantised.products.iter().map(|p| module.graph.value(p.source.y).name.clone());
        options.backbone.in_8_bits = Some(names.collect());
        let module = compiled(name, &options);
        let quantised = module.quantised.as_ref().expect("it was quantised");
        let eight = |p: &QuantisedProduct| matches!(p.matrix, NewMatrix::Blocks { bits: BlockBits::Eight, .. });
        assert!(quantised.products.iter().all(eight));
        let errors = errors(&module, &case(name));
        let worst = errors.iter().copied().fold(0.0, f64::max);
        println!("{name}: {worst:.2e} of at most {BLOCKS_OF_8:.2e}");
        assert!(worst <= BLOCKS_OF_8 && errors.iter().all(|e| e.is_finite()), "{errors:?}");
    }
}

#[test]
fn signed_and_unsigned_integers_stand_for_the_same_numbers() {
    let [signed, unsigned] =
        [Int8Weights::Signed, Int8Weights::Unsigned].map(|f| compiled("gated_dynamo", &options(Precision::Int8, f)));
    let numbers = |module: &Module| -> Vec<Vec<f32>> {
        let quantised = module.quantised.as_ref().expect("it was quantised");
        quantised.products.iter().map(|p| quantised.dequantised(&module.graph, p).expect("it fits").0).collect()
    };
    assert_eq!(numbers(&signed), numbers(&unsigned));
}

#[test]
fn an_activation_is_quantised_once_and_only_the_towers_products_are_taken() {
    let module = compiled("gated_dynamo", &options(Precision::Int8, Int8Weights::Signed));
    let quantised = module.quantised.as_ref().expect("it was quantised");
    let count = |op: &str| module.graph.node_ids().filter(|id| module.graph.node(*id).is(op)).count();
    // Of an encoder block 4 of attention, 3 of the feed-forward layer; a decoder block has 4 more.
    assert_eq!((quantised.products.len(), quantised.of(), count("MatMulInteger")), (36, 36, 36));
    // q, k, v have one; o; both inner matrices; the outer one. In cross-attention q; o; k and v of all blocks together.
    assert_eq!(count("DynamicQuantizeLinear"), 2 * 4 + 2 * 6 + 1);
    let head = module.anatomy.head.linear.weight.value().expect("a constant");
    assert!(quantised.products.iter().all(|p| p.source.weight != head));
    assert!(module.graph.opsets.iter().all(|(domain, _)| domain.is_empty()), "the default domain alone");
}

/// The heads as they would be without a layout of their own: the product turned back, and what the source makes of it.
fn turned_back(module: &Module) -> Graph {
    let mut graph = module.graph.clone();
    let quantised = module.quantised.as_ref().expect("it was quantised");
    for product in &quantised.products {
        for remade in product.remade.iter().filter(|remade| remade.value != product.source.y) {
            let split = graph.node(remade.by).input(0).expect("a Transpose reads it");
            let (reshape, _) = graph.producer_of(split).expect("a Reshape makes it");
            let turned = graph.node(reshape).input(0).expect("it reads the product");
            let (of_source, _) = module.source().producer_of(product.source.y).expect("a product makes it");
            assert_eq!(of_source, product.source.node);
            let transpose = module.source().node(remade.source).clone();
            let by_head = transpose.input(0).expect("it reads the heads");
            let shape = module.source().node(module.source().producer_of(by_head).expect("a Reshape").0).input(1);
            let b = Builder::new(&mut graph, Origin::SOURCE);
            let y = b.transpose(turned, &[1, 0, 2]);
            let by_head = b.op("Reshape", &[y, shape.expect("it has a shape")], Attributes::none());
            let value = b.op("Transpose", &[by_head], transpose.attributes);
            graph.redirect(remade.value, value);
        }
    }
    graph
}

#[test]
fn heads_with_their_length_first_are_the_same_numbers() {
    for (name, products, norms) in [("gated_dynamo", 12, 12), ("relu_torchscript", 18, 0)] {
        let module = compiled(name, &options(Precision::Int8, Int8Weights::Signed));
        let quantised = module.quantised.as_ref().expect("it was quantised");
        let of_heads = quantised.products.iter().filter(|p| p.remade.iter().any(|r| r.value != p.source.y)).count();
        let of_norms = quantised.remade().filter(|r| module.graph.node(r.by).is("Div")).count();
        assert_eq!((of_heads, of_norms), (products, norms), "{name}");
        assert!(taps(&module, name, module.graph.clone()) == taps(&module, name, turned_back(&module)), "{name}");
    }
}

/// Every block's output, bit for bit, as `graph` makes it of the case's inputs.
fn taps(module: &Module, name: &str, mut graph: Graph) -> Vec<Vec<u32>> {
    graph.outputs = module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output)).collect();
    let graph = graph.slice(&graph.outputs);
    let session = common::runtime().session().optimisation(Optimisation::Off);
    let mut session = session.load(&encode(&graph, &DataFiles::default()), None).expect("the graph runs");
    let (expected, taken) = (expected(&case(name)), session.inputs().to_vec());
    let inputs: Vec<(&str, &Tensor)> = taken.iter().map(|port| (port.name.as_str(), &expected[&port.name])).collect();
    let names: Vec<&str> = graph.outputs.iter().map(|v| graph.value(*v).name.as_str()).collect();
    let bits = |tensor: &Tensor| tensor.as_f32().expect("f32").iter().map(|number| number.to_bits()).collect();
    session.run(&inputs, &names).expect("the graph runs").iter().map(bits).collect()
}

#[test]
fn a_relu_is_left_to_the_saturation_of_unsigned_integers() {
    let module = compiled("relu_torchscript", &options(Precision::Int8, Int8Weights::Signed));
    let saturating: Vec<_> = module.graph.node_ids().filter(|id| module.graph.node(*id).is("QuantizeLinear")).collect();
    assert_eq!(saturating.len(), 4, "one of each feed-forward layer");
    // As they are, and with nothing above 0.
    for lower in [0.0, 1e9] {
        let [mut found, mut wanted] = [module.graph.clone(), module.graph.clone()];
        for (graph, with_relu) in [(&mut found, false), (&mut wanted, true)] {
            for id in &saturating {
                let node = graph.node(*id).clone();
                let [h, scale, q] = [node.input(0), node.input(1), node.output(0)].map(|v| v.expect("it has all"));
                let readers: Vec<_> = graph.uses().of(h).to_vec();
                let b = Builder::new(graph, Origin::SOURCE);
                let lowered = b.sub(h, b.f32(lower));
                let quantised = with_relu.then(|| {
                    let relu = b.op("Relu", &[lowered], Attributes::none());
                    b.op_n("DynamicQuantizeLinear", &[relu], Attributes::none(), 3)
                });
                for (node, slot) in readers {
                    graph.reconnect(node, slot, lowered);
                }
                if let Some(quantised) = quantised {
                    graph.redirect(q, quantised[0]);
                    graph.redirect(scale, quantised[1]);
                }
            }
        }
        assert!(taps(&module, "relu_torchscript", found) == taps(&module, "relu_torchscript", wanted));
    }
}

#[test]
fn what_is_not_as_the_pass_left_it_breaks_the_third_invariant() {
    let broken = |change: &dyn Fn(&mut Module)| {
        let mut module = compiled("gated_dynamo", &options(Precision::Int4, Int8Weights::Signed));
        assert_eq!(module.check(), Ok(()));
        change(&mut module);
        lstc_passes::problem::listed(&module.check().expect_err("it was changed"))
    };
    let first = |module: &Module| module.quantised.as_ref().expect("it was quantised").products[0].clone();
    let attribute = broken(&|m| m.graph.set_attribute(first(m).remade[0].by, "block_size", Attribute::Int(16)));
    assert!(attribute.contains("of pass quantise was changed"), "{attribute}");
    let constant = broken(&|m| {
        let NewMatrix::Blocks { scales, .. } = first(m).matrix else { panic!("it is in 4 bits") };
        let other = Weight::from_f32(
            m.graph.weight(scales).expect("a constant").dims(),
            &vec![1.0; m.graph.weight(scales).expect("a constant").elements()],
        );
        m.graph.replace_weight(scales, other);
    });
    assert!(constant.contains("of pass quantise was changed"), "{constant}");
    let operand = broken(&|m| {
        let other = m.anatomy.towers[0].blocks[0].input;
        let by = first(m).remade[0].by;
        m.graph.reconnect(by, 0, other);
    });
    assert!(operand.contains("of pass quantise was changed"), "{operand}");
    let bypass = broken(&|m| {
        let product = first(m);
        let b = Builder::new(&mut m.graph, lstc_passes::quantise::QUANTISE);
        let copy = b.op("Identity", &[product.source.y], Attributes::none());
        let (node, slot) = m.graph.uses().of(product.source.y)[0];
        m.graph.reconnect(node, slot, copy);
    });
    assert!(bypass.contains("did not add this node") && bypass.contains("was changed"), "{bypass}");
    let source = broken(&|m| {
        let norm = m.anatomy.towers[0].final_norm.weight;
        let zeros = vec![0.0; m.graph.weight(norm).expect("a constant").elements()];
        let other = Weight::from_f32(&[zeros.len()], &zeros);
        m.graph.replace_weight(norm, other);
    });
    assert!(source.contains("a value of the backbone was changed"), "{source}");
}

/// A rewrite by the command line, and examples for it.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(name: &str, flags: &[&str]) -> Tuned {
        common::runtime();
        let tuned = Tuned { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::copy(case(name).join("model.onnx"), tuned.path("model.onnx")).expect("a copy");
        let row = |i: usize| format!("{{\"input_ids\": [{}, 5, 6, 7], \"labels\": [3, {}, 1]}}\n", i + 2, i % 3 + 4);
        fs::write(tuned.path("data.jsonl"), (0..12).map(row).collect::<String>()).expect("it can be written");
        let told = tuned
            .run(&[&["rewrite", tuned.path("model.onnx").to_str().expect("UTF-8"), "-r", "4"], flags].concat(), "-o");
        assert!(told.contains("  error ") && told.contains(" of "), "{told}");
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command that must succeed, with the directory behind `before`.
    fn run(&self, arguments: &[&str], before: &str) -> String {
        let directory = self.path("tuned");
        let done = lstc(&[arguments, &[before, text(&directory)][usize::from(before.is_empty())..]].concat());
        assert_eq!(done.status.code(), Some(0), "{arguments:?}\n{}{}", stdout(&done), stderr(&done));
        stdout(&done)
    }

    /// What `verify` finds wrong.
    fn failures(&self) -> String {
        let verdict = lstc(&["verify", text(&self.path("tuned"))]);
        assert_eq!(verdict.status.code(), Some(1), "{}{}", stdout(&verdict), stderr(&verdict));
        stdout(&verdict).lines().filter(|line| line.contains("FAILED")).collect()
    }
}

#[test]
fn every_command_takes_it() {
    for (name, flags) in [
        ("gated_dynamo", &["--backbone", "int8"][..]),
        ("relu_torchscript", &["--backbone", "int4"]),
        ("relu_torchscript", &["--backbone", "int4", "--max-tap-error", "1"]),
        ("gated_dynamo", &["--backbone", "bf16"]),
    ] {
        let (tuned, precision) = (Tuned::new(name, flags), flags[1]);
        let verdict = tuned.run(&["verify"], "");
        assert!(verdict.contains("the errors that the manifest records"), "{verdict}");
        let data = tuned.path("data.jsonl");
        tuned.run(&["train", "--train", text(&data), "--eval", text(&data), "--epochs", "2", "--batch-size", "4"], "");
        tuned.run(&["eval", "--data", text(&data)], "");
        let inspected = tuned.run(&["inspect"], "");
        assert!(inspected.contains("quantise ") && inspected.contains("predicted memory"), "{inspected}");
        let exported = tuned.path("tuned.onnx");
        tuned.run(&["export", "-o", text(&exported)], "");
        let model = load(&exported).expect("it is a model");
        let wanted = match precision {
            "bf16" => DType::BF16,
            "int4" => DType::U8,
            _ => DType::I8,
        };
        let matrices =
            model.value_ids().filter(|v| model.weight(*v).is_some_and(|w| w.dtype() == wanted && w.dims().len() > 1));
        assert!(matrices.count() >= 32);
    }
}

/// In all forms that a head has: with the matrix turned and not, with a bias of the up-projection and a teacher.
#[test]
fn a_quantised_head_has_the_gradient_of_its_own_loss() {
    for (name, flags) in [
        ("gated_dynamo", &["--backbone", "int8", "--quantise-head"][..]),
        ("relu_torchscript", &["--backbone", "bf16", "--quantise-head", "--distill", "0.5"]),
    ] {
        let tuned = Tuned::new(name, flags);
        let verdict = tuned.run(&["verify"], "");
        assert!(verdict.contains("the side network's LM head against the source's"), "{verdict}");
        let graph = load(&tuned.path("tuned/train.onnx")).expect("it is a model");
        let head = |id: &lstc_graph::NodeId| graph.node(*id).origin.name() == "quantise-head";
        let count = |op: &str| graph.node_ids().filter(head).filter(|id| graph.node(*id).is(op)).count();
        assert_eq!((count("DequantizeLinear"), count("Gemm"), count("Concat"), count("Slice")), (8, 8, 1, 4));
        let data = tuned.path("data.jsonl");
        tuned.run(&["train", "--train", text(&data), "--epochs", "1", "--batch-size", "4"], "");
        tuned.run(
            &["export", "-o", text(&tuned.path("tuned.onnx")), "--side", text(&tuned.path("tuned/side.safetensors"))],
            "",
        );
    }
}

#[test]
fn what_was_tampered_with_is_found() {
    let tuned = Tuned::new("relu_torchscript", &["--backbone", "int8"]);
    let infer = tuned.path("tuned/infer.onnx");
    let graph = load(&infer).expect("it is a model");
    let name = |suffix: &str| {
        let ends = |v: &lstc_graph::ValueId| {
            graph.weight(*v).is_some_and(|w| w.elements() > 64) && graph.value(*v).name.ends_with(suffix)
        };
        graph.value_ids().find(ends).expect("there are quantised matrices")
    };
    let place = graph.weight(name("/int8")).and_then(Weight::place).map(|p| (p.file.to_path_buf(), p.offset));
    let (file, offset) = place.expect("it lies in the data file");
    let whole = fs::read(&file).expect("it can be read");
    let mut other = whole.clone();
    other[offset as usize] ^= 1;
    fs::write(&file, &other).expect("it can be written");
    let found = tuned.failures();
    assert!(found.contains("compiler's, weights and all") && found.contains("3. "), "{found}");
    fs::write(&file, &whole).expect("it can be written");

    let before = fs::read(&infer).expect("it can be read");
    let changed = |change: &dyn Fn(&mut Graph)| {
        let mut graph = load(&infer).expect("it is a model");
        change(&mut graph);
        fs::write(&infer, encode(&graph, &DataFiles::of(&graph, &tuned.path("tuned")))).expect("it can be written");
        let found = tuned.failures();
        fs::write(&infer, &before).expect("it can be written");
        found
    };
    let scale = changed(&|graph| {
        let ends = |v: &lstc_graph::ValueId| graph.value(*v).name.ends_with("/scales");
        let scales = graph.value_ids().find(ends).expect("there are scales");
        let mut values = graph.weight(scales).and_then(Weight::to_f32).expect("f32");
        values[0] *= 1.5;
        graph.replace_weight(scales, Weight::from_f32(&[values.len()], &values));
    });
    assert!(scale.contains("3. "), "{scale}");
    let node = changed(&|graph| {
        let products: Vec<_> = graph.node_ids().filter(|id| graph.node(*id).is("MatMulInteger")).collect();
        let other = graph.node(products[1]).input(1).expect("a matrix");
        graph.reconnect(products[0], 1, other);
    });
    assert!(node.contains("3. "), "{node}");

    let manifest = tuned.path("tuned/lst.yaml");
    let record = fs::read_to_string(&manifest).expect("a manifest");
    let line = record.lines().find(|line| line.trim_start().starts_with("error:")).expect("errors are recorded");
    fs::write(&manifest, record.replacen(line, "    error: 0.5", 1)).expect("it can be written");
    let error = tuned.failures();
    assert!(error.contains("the errors that the manifest records"), "{error}");
}

#[test]
fn products_take_more_bits_until_the_limit_holds_and_that_is_the_configuration() {
    let unlimited = Tuned::new("gated_dynamo", &["--backbone", "int4", "--max-tap-error", "1"]);
    let manifest = fs::read_to_string(unlimited.path("tuned/lst.yaml")).expect("a manifest");
    assert!(!manifest.contains("in_8_bits:") && !manifest.contains("kept:\n"), "{manifest}");
    let tuned = Tuned::new(
        "gated_dynamo",
        &["--backbone", "int4", "--max-tap-error", "0.2", "--sample", text(&unlimited.path("data.jsonl"))],
    );
    let manifest = fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("a manifest");
    assert!(manifest.contains("within_limit: true") && manifest.contains("  in_8_bits:\n  - "), "{manifest}");
    assert!(manifest.contains("  kept: []\n"), "8 bits do: {manifest}");
    let errors: Vec<f64> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("error: "))
        .map(|error| error.parse().expect("a number"))
        .collect();
    assert!(errors.len() == 4 && errors.iter().all(|e| *e <= 0.2), "{errors:?}");
    tuned.run(&["verify"], "");

    // Nothing is measured anew: the library that would do it is not found.
    let (config, again) = (tuned.path("tuned/lst.yaml"), tuned.path("again"));
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_lstc"))
        .args(["rewrite", "--config", text(&config), "-o", text(&again)])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .expect("lstc runs");
    assert!(done.status.success(), "{}", stderr(&done));
    // What was seen of the files is of this folder alone.
    let entries = fs::read_dir(tuned.path("tuned")).expect("a folder").flatten();
    for entry in entries.filter(|entry| entry.file_name() != ".seen.json") {
        let same = fs::read(entry.path()).ok() == fs::read(again.join(entry.file_name())).ok();
        assert!(same, "{:?} differs", entry.file_name());
    }
    // Nothing said is a limit too, of int4; of int8, more bits are the source's.
    let model = tuned.path("model.onnx");
    let rewritten = |flags: &[&str]| {
        let output = tuned.path("other");
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&output), "--force"], flags].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        (done, fs::read_to_string(output.join("lst.yaml")).expect("a manifest"))
    };
    let (_, manifest) = rewritten(&["--backbone", "int4"]);
    assert!(manifest.contains("max_tap_error: 0.03") && manifest.contains("within_limit: true"), "{manifest}");
    let (_, manifest) = rewritten(&["--backbone", "int8", "--max-tap-error", "0.02"]);
    assert!(manifest.contains("within_limit: true") && manifest.contains("  kept:\n  - "), "{manifest}");
    // What 8 bits do not bring below the limit is the source's own; what is chosen by hand is not chosen anew.
    let (_, manifest) = rewritten(&["--backbone", "int4", "--max-tap-error", "0.003"]);
    assert!(manifest.contains("  kept:\n  - "), "{manifest}");
    fs::write(tuned.path("chosen.yaml"), "backbone: {type: int4, in_8_bits: [linear_5]}\n").expect("it can be written");
    let (_, manifest) = rewritten(&["--config", text(&tuned.path("chosen.yaml"))]);
    assert!(
        manifest.contains("  in_8_bits:\n  - linear_5\n") && manifest.contains("within_limit: false"),
        "{manifest}"
    );
    // Any limit can be held, if by all products as they are.
    let (_, manifest) = rewritten(&["--backbone", "int4", "--max-tap-error", "1e-4"]);
    assert!(manifest.contains("within_limit: true"), "{manifest}");
    let (impossible, _) = rewritten(&["--backbone", "int4", "--max-tap-error", "1e-9"]);
    let all = stderr(&impossible).contains("do not bring every tap's error below")
        || stdout(&impossible).contains("int4: 0 of 36");
    assert!(all, "{}{}", stdout(&impossible), stderr(&impossible));
}

#[test]
fn products_that_lower_an_error_only_together_take_more_bits() {
    common::runtime();
    for (name, limit) in [("merge_last", "0.03"), ("two_and_three_blocks", "0.03"), ("two_and_three_blocks", "0.01")] {
        let flags = ["--backbone", "int4", "--max-tap-error", limit];
        let manifest = fs::read_to_string(Tuned::new(name, &flags).path("tuned/lst.yaml")).expect("a manifest");
        assert!(manifest.contains("within_limit: true"), "{name} within {limit}: {manifest}");
        assert!(!manifest.contains("taken: 0\n"), "{name} within {limit} keeps products in fewer bits: {manifest}");
    }
}

#[test]
fn the_fastest_is_measured_and_recorded_by_its_name() {
    let tuned = Tuned { folder: tempfile::tempdir().expect("a temporary folder") };
    common::runtime();
    let model = case("gated_dynamo").join("model.onnx");
    let done =
        lstc(&["rewrite", text(&model), "-o", text(&tuned.path("tuned")), "--backbone", "auto", "--format", "json"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let report: serde_json::Value = serde_json::from_str(&stdout(&done)).expect("it is JSON");
    let candidates = report["candidates"].as_array().expect("they are told");
    assert!(candidates.len() == 3 && candidates.iter().all(|c| c["seconds"].is_number()), "{candidates:?}");
    let manifest = fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("a manifest");
    let wanted = format!("backbone:\n  type: {}\n", candidates[0]["type"].as_str().expect("a name"));
    assert!(manifest.contains(&wanted), "{manifest}");
}

#[test]
fn what_cannot_be_is_refused() {
    let model = case("gated_dynamo").join("model.onnx");
    let refused = |flags: &[&str]| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&folder.path().join("tuned"))], flags].concat());
        assert_ne!(done.status.code(), Some(0), "{flags:?}");
        stderr(&done)
    };
    assert!(refused(&["--backbone", "int7"]).contains("int7"));
    assert!(refused(&["--backbone", "int8", "--max-tap-error", "0"]).contains("must be positive"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("config.yaml");
    fs::write(&config, "backbone: {type: int8, kept: [nothing]}\n").expect("it can be written");
    assert!(refused(&["--config", text(&config)]).contains("names `nothing`, which is not the result"));
    fs::write(&config, "backbone: {type: int8, kept: [], in_8_bits: [nothing]}\n").expect("it can be written");
    assert!(refused(&["--config", text(&config)]).contains("needs an int4 backbone, and this one is int8"));
    fs::write(&config, "backbone: {type: int4, kept: [linear], in_8_bits: [nothing, linear]}\n")
        .expect("it can be written");
    let both = refused(&["--config", text(&config)]);
    assert!(both.contains("backbone.in_8_bits names `nothing`, which is not the result"), "{both}");
    assert!(both.contains("backbone.kept and backbone.in_8_bits both name `linear`"), "{both}");
}

/// A case of which a constant is changed, as a model of its own.
fn changed(name: &str, folder: &Path, change: impl FnOnce(&mut Graph)) -> PathBuf {
    let mut graph = load(&case(name).join("model.onnx")).expect("the case loads");
    change(&mut graph);
    let model = folder.join("model.onnx");
    fs::write(&model, encode(&graph, &DataFiles::default())).expect("it can be written");
    model
}

/// Numbers of a constant in another place.
fn rewritten_constant(graph: &mut Graph, value: ValueId, change: impl FnOnce(&mut [f32])) {
    let weight = graph.weight(value).expect("a constant").clone();
    let mut numbers = weight.to_f32().expect("floats");
    change(&mut numbers);
    graph.replace_weight(value, Weight::from_f32(weight.dims(), &numbers));
}

/// The embedding table of a case, and the matrix behind the activation of its first feed-forward layer.
fn constants(name: &str) -> [ValueId; 2] {
    let (_, anatomy) = lstc::rewrite::open(&(&case(name).join("model.onnx")).into()).expect("a case");
    let first = &anatomy.towers[0].blocks[0].sublayers;
    let outer = first.iter().find_map(|sublayer| match &sublayer.kind {
        SublayerKind::FeedForward(layer) => layer.outer.weight.value(),
        SublayerKind::Attention(_) => None,
    });
    [anatomy.towers[0].table.value().expect("a constant"), outer.expect("a constant")]
}

#[test]
fn a_channel_that_outweighs_all_others_hides_no_error_from_the_limit() {
    common::runtime();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [_, outer] = constants("relu_torchscript");
    // Beside it the encoder's errors are small, and the decoder, behind a norm, inherits larger ones.
    let model = changed("relu_torchscript", folder.path(), |graph| {
        rewritten_constant(graph, outer, |numbers| numbers[0] = 3e5);
    });
    let tuned = folder.path().join("tuned");
    for (precision, limit) in [("int4", "0.03"), ("int8", "0.003")] {
        let flags = ["-r", "4", "--backbone", precision, "--max-tap-error", limit, "--force", "-o", text(&tuned)];
        let done = lstc(&[&["rewrite", text(&model)], &flags[..]].concat());
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        let manifest = fs::read_to_string(tuned.join("lst.yaml")).expect("a manifest");
        assert!(manifest.contains("within_limit: true"), "{precision} {limit}: {manifest}");
    }
}

#[test]
fn what_is_no_number_is_refused_and_told_where() {
    common::runtime();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [table, matrix] = constants("relu_torchscript");
    let (output, none) = (folder.path().join("tuned"), f32::NAN);
    let refused = |model: &Path, with: &str| {
        for precision in ["int8", "int4"] {
            let done = lstc(&["rewrite", text(model), "-r", "4", "--backbone", precision, "-o", text(&output)]);
            assert_eq!(done.status.code(), Some(2), "{}", stdout(&done));
            assert!(stderr(&done).contains(with) && !output.exists(), "{}", stderr(&done));
        }
    };
    for value in [table, matrix] {
        let model = changed("relu_torchscript", folder.path(), |graph| {
            rewritten_constant(graph, value, |numbers| numbers.fill(none));
        });
        refused(&model, "the model itself gives a value that is not a number at block 0 of the encoder");
    }
}

#[test]
fn a_final_output_and_logits_that_are_taps_keep_the_limit_too() {
    let flags = ["--backbone", "int4", "--merge-last", "--distill", "0.5", "--max-tap-error", "0.02"];
    let tuned = Tuned::new("relu_torchscript", &flags);
    let manifest = fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("a manifest");
    assert!(manifest.contains("within_limit: true"), "{manifest}");
    for what in ["  output: ", "  logits: "] {
        let error = manifest.lines().find_map(|line| line.strip_prefix(what)?.parse::<f64>().ok());
        assert!(error.is_some_and(|error| error > 0.0 && error <= 0.02), "{what}: {error:?}");
    }
    tuned.run(&["verify"], "");
    // What is a tap is measured anew where that has changed.
    let other = tuned.path("other");
    let from = tuned.path("tuned");
    let flags = ["--merge-last=false", "--distill", "0", "-o", text(&other)];
    let done = lstc(&[&["rewrite", "--from", text(&from)], &flags[..]].concat());
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let manifest = fs::read_to_string(other.join("lst.yaml")).expect("a manifest");
    assert!(!manifest.contains("\n  output: ") && manifest.contains("within_limit: true"), "{manifest}");
    let proof = lstc(&["verify", text(&other)]);
    assert_eq!(proof.status.code(), Some(0), "{}{}", stdout(&proof), stderr(&proof));
}

#[test]
fn what_is_proved_of_a_block_does_not_slacken_with_the_backbones_precision() {
    let tuned = Tuned::new("relu_torchscript", &["--backbone", "int8"]);
    let proof = tuned.run(&["verify"], "");
    let bounds: Vec<&str> = proof.lines().filter(|line| line.contains("at r=1")).collect();
    assert!(bounds.len() == 4 && bounds.iter().all(|line| line.contains("1e-5, 1e-3")), "{proof}");
}

#[test]
fn a_model_of_half_precision_is_proved_with_a_quantised_backbone() {
    common::runtime();
    let folder = tempfile::tempdir().expect("a temporary folder");
    archive::unpack("2f_gated_tied_f16_equal", folder.path());
    let model = folder.path();
    for precision in ["int8", "int4"] {
        let tuned = folder.path().join(precision);
        let done = lstc(&["rewrite", text(model), "-r", "4", "--backbone", precision, "-o", text(&tuned)]);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        let proof = lstc(&["verify", text(&tuned)]);
        assert_eq!(proof.status.code(), Some(0), "{}{}", stdout(&proof), stderr(&proof));
    }
}

#[test]
fn a_sample_is_cut_to_what_a_model_fixes() {
    let sizes = ["--batch", "4", "--source-length", "3", "--target-length", "2"];
    let tuned = Tuned::new("gated_dynamo", &["--backbone", "int8"]);
    let (model, sample) = (tuned.path("model.onnx"), tuned.path("data.jsonl"));
    let flags = ["-r", "4", "--backbone", "int8", "--sample", text(&sample), "--force", "-o"];
    let done = lstc(&[&["rewrite", text(&model)], &sizes[..], &flags, &[text(&tuned.path("tuned"))]].concat());
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
}
