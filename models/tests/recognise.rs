//! Recognition on real exports, on the same with every name scrambled, and on models that must be refused.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use lstc_graph::{Graph, load, load_bytes};
use lstc_models::{Anatomy, SublayerKind, recognise};
use prost::Message;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases")
}

/// Folders that hold a `model.onnx`.
fn models() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(cases())
        .expect("the cases are committed")
        .map(|e| e.expect("a readable folder").path().join("model.onnx"))
        .filter(|p| p.exists())
        .collect();
    found.sort();
    assert!(found.len() >= 10, "only {} cases", found.len());
    found
}

/// Everything of an anatomy that does not depend on names.
fn describe(graph: &Graph, anatomy: &Anatomy) -> String {
    let mut text = String::new();
    for tower in &anatomy.towers {
        let _ = writeln!(text, "{} width {} eps {:e}", tower.kind, tower.width, tower.final_norm.epsilon);
        for (index, block) in tower.blocks.iter().enumerate() {
            let _ = write!(text, "  block {index}:");
            for sublayer in &block.sublayers {
                let _ = match &sublayer.kind {
                    SublayerKind::Attention(a) => write!(
                        text,
                        " {:?}({} x {}, scale {}, rows {:?}, context {})",
                        a.kind,
                        a.heads,
                        a.head_width,
                        a.scale,
                        a.relative().map(|r| r.rows),
                        a.context.is_some()
                    ),
                    SublayerKind::FeedForward(f) => {
                        write!(text, " ff({} {} gated {})", f.width(), f.activation.name(), f.is_gated())
                    }
                };
            }
            let _ = writeln!(text);
        }
    }
    let head = &anatomy.head;
    let _ = writeln!(text, "head {} scale {:.6} tied {}", head.linear.outputs, head.scale, head.tied);
    let _ = graph;
    text
}

/// Renames every value and node.
fn scramble(graph: &mut Graph) {
    for (index, id) in graph.value_ids().enumerate() {
        graph.rename(id, &format!("v{}", (index * 7919) % 1_000_003)).expect("scrambled names are unique");
    }
    graph.rename_nodes(|index| format!("n{}", (index * 104_729) % 1_000_003));
}

#[test]
fn every_case_is_recognised_whatever_its_names() {
    for path in models() {
        let mut graph = load(&path).unwrap_or_else(|e| panic!("{e}"));
        let anatomy = recognise(&mut graph).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        let plain = describe(&graph, &anatomy);
        println!("{}\n{plain}", path.display());
        scramble(&mut graph);
        let anatomy = recognise(&mut graph).unwrap_or_else(|e| panic!("scrambled {}:\n{e}", path.display()));
        assert_eq!(plain, describe(&graph, &anatomy), "{}", path.display());
    }
}

fn refusals(name: &str) -> Vec<String> {
    let mut graph = load(&cases().join("refused").join(name)).unwrap_or_else(|e| panic!("{e}"));
    let refused = recognise(&mut graph).err().unwrap_or_else(|| panic!("{name} must be refused"));
    let texts: Vec<String> = refused.refusals.iter().map(ToString::to_string).collect();
    println!("{name}:\n  {}", texts.join("\n  "));
    texts
}

/// Asserts the exact number of refusals, and that each holds its words, in order.
fn refused(name: &str, wanted: &[&[&str]]) {
    let texts = refusals(&format!("{name}.onnx"));
    assert_eq!(texts.len(), wanted.len(), "{name}:\n{}", texts.join("\n"));
    for (text, words) in texts.iter().zip(wanted) {
        for word in *words {
            assert!(text.contains(word), "{name}: {word:?} is not in {text}");
        }
    }
}

#[test]
fn unknown_activation_is_refused_in_each_block() {
    let reason = "computes Elu, an activation that lstc does not know";
    refused(
        "unknown_activation",
        &[
            &["block 1 of the decoder: ", "`/model/decoder/block.1/layer.2/DenseReluDense/act/Relu`", reason],
            &["block 0 of the encoder: ", "`/model/encoder/block.0/layer.1/DenseReluDense/act/Relu`", reason],
        ],
    );
}

#[test]
fn a_reader_from_outside_is_refused() {
    refused(
        "extra_consumer",
        &[
            &["block 1 of the encoder: ", "`per_query`", "Squeeze", "neither attention nor feed-forward"],
            &[
                "inside a block: ",
                "`/model/encoder/block.0/layer.0/SelfAttention/Softmax_output_0`",
                "is also read by the ReduceMean `mean_attention`, which is not part of the model",
            ],
        ],
    );
}

#[test]
fn a_sublayer_without_its_residual_is_refused() {
    refused(
        "missing_residual",
        &[&[
            "block 0 of the decoder: ",
            "`/model/decoder/block.0/layer.2/DenseReluDense/wo/MatMul`",
            "is not added to the residual stream",
        ]],
    );
}

#[test]
fn two_heads_are_refused() {
    let reason = "is one of several LM heads (1 more): which to train?";
    refused("two_heads", &[&["the LM head: `logits` ", reason], &["the LM head: `logits2` ", reason]]);
}

#[test]
fn a_gelu_of_other_constants_is_refused() {
    refused(
        "gelu_scale",
        &[&[
            "block 1 of the encoder: ",
            "`/model/encoder/block.1/layer.1/DenseReluDense/act/Add`",
            "cubic term is 0.050000, not 0.044715",
        ]],
    );
}

#[test]
fn models_without_an_lm_head_are_refused() {
    let reason = "makes output `last_hidden_state`, the output of a norm: an encoder alone";
    refused("no_cross_attention", &[&["the LM head: ", "`/model/encoder/final_layer_norm/Mul_1`", reason]]);
    let last = "`/model/encoder/layer.1/output/LayerNorm/LayerNormalization`";
    let bias = "is a matrix product with a bias: the layers of a T5 have none";
    refused(
        "bert",
        &[
            &["the LM head: ", last, reason, "LayerNormalization"],
            &["the final norm of the encoder: ", last, "is a LayerNormalization, where a Mul was expected"],
            &["the residual stream of the encoder: ", "is a norm of the residual stream itself"],
            &["the embedding of the encoder: ", "token_type_embeddings", "expected table rows"],
            &["the embedding of the encoder: ", "word_embeddings", "it is added to the residual stream"],
            &["the embedding of the encoder: ", "position_embeddings", "it is added to the residual stream"],
            &["block 0 of the encoder: ", "layer.0/attention/output/dense/Add", bias],
            &["block 0 of the encoder: ", "layer.0/output/dense/Add", bias],
            &["block 1 of the encoder: ", "layer.1/attention/output/dense/Add", bias],
            &["block 1 of the encoder: ", "layer.1/output/dense/Add", bias],
        ],
    );
}

/// Whether the head of a model whose exporter wrote it as a transposed copy of the embedding counts as tied, after a change of its
/// elements.
fn is_tied(change: impl FnOnce(&mut [f32])) -> bool {
    let path = cases().join("relu_torchscript/model.onnx");
    let bytes = std::fs::read(&path).expect("the case is committed");
    let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
    let graph = model.graph.as_mut().expect("the case is a model");
    let product = graph.node.iter().find(|n| n.output[0] == "logits").expect("the case has logits");
    let name = product.input[1].clone();
    let head = graph.initializer.iter_mut().find(|t| t.name() == name).expect("the head is a constant");
    assert_eq!(head.dims, [48, 96]);
    let raw = head.raw_data.as_ref().expect("exporters write raw data");
    let mut elements: Vec<f32> =
        raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    change(&mut elements);
    head.raw_data = Some(elements.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into());
    let mut graph = load_bytes(model.encode_to_vec().into(), &path).unwrap_or_else(|e| panic!("{e}"));
    recognise(&mut graph).unwrap_or_else(|e| panic!("{e}")).head.tied
}

#[test]
fn a_head_that_differs_from_the_embedding_anywhere_is_not_tied_to_it() {
    assert!(is_tied(|_| ()));
    assert!(!is_tied(|head| head[96] += 1e-3), "one element");
    assert!(!is_tied(|head| head.iter_mut().skip(95).step_by(96).for_each(|v| *v += 1.0)), "the last token's row");
}

/// The same model in another spelling, which must be recognised as the same.
fn respelled(what: &str, respell: impl Fn(&mut GraphProto) -> usize) {
    let mut edits = 0;
    for path in models() {
        let mut original = load(&path).unwrap_or_else(|e| panic!("{e}"));
        let anatomy = recognise(&mut original).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        let wanted = describe(&original, &anatomy);
        let bytes = std::fs::read(&path).expect("the cases are committed");
        let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
        edits += respell(model.graph.as_mut().expect("the case is a model"));
        let mut graph = load_bytes(model.encode_to_vec().into(), &path).unwrap_or_else(|e| panic!("{what}: {e}"));
        let anatomy = recognise(&mut graph).unwrap_or_else(|e| panic!("{what}, {}:\n{e}", path.display()));
        assert_eq!(wanted, describe(&graph, &anatomy), "{what}, {}", path.display());
    }
    println!("{what}: {edits} edits in {} models", models().len());
    assert!(edits > 0, "{what} changed nothing");
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("respelled {output}")),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

fn f32_scalar(name: &str, value: f32) -> TensorProto {
    TensorProto { name: Some(name.to_owned()), data_type: Some(1), float_data: vec![value], ..TensorProto::default() }
}

#[test]
fn operands_in_the_other_order() {
    respelled("swapped operands", |graph| {
        let commutative = graph.node.iter_mut().filter(|n| matches!(n.op_type(), "Add" | "Mul") && n.input.len() == 2);
        commutative.map(|n| n.input.swap(0, 1)).count()
    });
}

#[test]
fn copies_on_every_edge() {
    respelled("an Identity on every edge", |graph| {
        let mut copies = Vec::new();
        for (index, reader) in graph.node.iter_mut().enumerate() {
            for (slot, input) in reader.input.iter_mut().enumerate().filter(|(_, input)| !input.is_empty()) {
                let copy = format!("copy {index} {slot}");
                copies.push(node("Identity", &[input], &copy));
                *input = copy;
            }
        }
        let count = copies.len();
        graph.node.extend(copies);
        count
    });
}

#[test]
fn copies_before_the_outputs() {
    respelled("an Identity before every output", |graph| {
        for output in &graph.output {
            let inner = format!("{} before its copy", output.name());
            for made in graph.node.iter_mut().flat_map(|n| n.output.iter_mut().chain(&mut n.input)) {
                if made == output.name() {
                    made.clone_from(&inner);
                }
            }
            graph.node.push(node("Identity", &[&inner], output.name()));
        }
        graph.output.len()
    });
}

#[test]
fn constants_as_nodes() {
    respelled("initializers as Constant nodes", |graph| {
        let weights = std::mem::take(&mut graph.initializer);
        let count = weights.len();
        for weight in weights {
            let name = weight.name().to_owned();
            let value = AttributeProto {
                name: Some("value".to_owned()),
                r#type: Some(AttributeType::Tensor.into()),
                t: Some(weight),
                ..AttributeProto::default()
            };
            graph.node.push(NodeProto { attribute: vec![value], ..node("Constant", &[], &name) });
        }
        count
    });
}

/// Puts other nodes in the place of some: given a node, those that make the same output.
fn replaced(graph: &mut GraphProto, spell: impl Fn(&NodeProto, &GraphProto) -> Option<Vec<NodeProto>>) -> usize {
    let mut count = 0;
    let before = graph.clone();
    for old in std::mem::take(&mut graph.node) {
        match spell(&old, &before) {
            Some(new) => {
                graph.node.extend(new);
                count += 1;
            }
            None => graph.node.push(old),
        }
    }
    graph.initializer.extend([f32_scalar("one", 1.0), f32_scalar("half", 0.5), f32_scalar("two", 2.0)]);
    graph.initializer.push(f32_scalar("minus half", -0.5));
    count
}

fn maker<'g>(graph: &'g GraphProto, value: &str) -> Option<&'g NodeProto> {
    graph.node.iter().find(|n| n.output.iter().any(|o| o == value))
}

/// The nodes of a norm: given `1 / sqrt(v)`, the value v.
fn under_the_root(old: &NodeProto, graph: &GraphProto) -> Option<String> {
    let root = match old.op_type() {
        "Reciprocal" => maker(graph, &old.input[0])?,
        "Div" => maker(graph, &old.input[1])?,
        _ => return None,
    };
    (root.op_type() == "Sqrt").then(|| root.input[0].clone())
}

/// True for the constant 1, an initializer or a Constant node.
fn is_one(graph: &GraphProto, value: &str) -> bool {
    let made = || maker(graph, value).filter(|n| n.op_type() == "Constant")?.attribute.first()?.t.as_ref();
    let tensor = graph.initializer.iter().find(|t| t.name() == value).or_else(made);
    let one =
        |t: &TensorProto| t.raw_data.as_ref().is_some_and(|b| b[..] == 1.0_f32.to_le_bytes()) || t.float_data == [1.0];
    tensor.is_some_and(one)
}

#[test]
fn norms_in_other_words() {
    let spell = |what: &str, nodes: &dyn Fn(&str, &str) -> Vec<NodeProto>| {
        respelled(what, |graph| {
            replaced(graph, |old, before| {
                let v = under_the_root(old, before)?;
                let y = &old.output[0];
                if old.op_type() == "Reciprocal" || is_one(before, &old.input[0]) {
                    return Some(nodes(&v, y));
                }
                let inverse = format!("{y} inverse");
                let mut made = nodes(&v, &inverse);
                made.push(node("Mul", &[&old.input[0], &inverse], y));
                Some(made)
            })
        });
    };
    let root = |v: &str, y: &str| (format!("{y} root"), node("Sqrt", &[v], &format!("{y} root")));
    spell("1 / sqrt(v) as Pow(v, -0.5)", &|v, y| vec![node("Pow", &[v, "minus half"], y)]);
    spell("1 / sqrt(v) as Div(1, Sqrt(v))", &|v, y| {
        let (name, sqrt) = root(v, y);
        vec![sqrt, node("Div", &["one", &name], y)]
    });
    spell("1 / sqrt(v) as Reciprocal(Sqrt(v))", &|v, y| {
        let (name, sqrt) = root(v, y);
        vec![sqrt, node("Reciprocal", &[&name], y)]
    });
    spell("1 / sqrt(v) as Reciprocal(Pow(v, 0.5))", &|v, y| {
        vec![node("Pow", &[v, "half"], &format!("{y} root")), node("Reciprocal", &[&format!("{y} root")], y)]
    });
    spell("1 / sqrt(v) as Sqrt(Reciprocal(v))", &|v, y| {
        vec![node("Reciprocal", &[v], &format!("{y} inner")), node("Sqrt", &[&format!("{y} inner")], y)]
    });
}

#[test]
fn quotients_in_norms() {
    respelled("x * (1 / sqrt(v)) as x / sqrt(v)", |graph| {
        replaced(graph, |old, before| {
            if old.op_type() != "Mul" {
                return None;
            }
            let found = old.input.iter().enumerate().find_map(|(slot, input)| {
                let inner = maker(before, input)?;
                let of_one =
                    inner.op_type() == "Reciprocal" || inner.op_type() == "Div" && is_one(before, &inner.input[0]);
                let v = of_one.then(|| under_the_root(inner, before))??;
                Some((1 - slot, v))
            });
            let (x, v) = found?;
            let (y, root) = (&old.output[0], format!("{} root", old.output[0]));
            Some(vec![node("Sqrt", &[&v], &root), node("Div", &[&old.input[x], &root], y)])
        })
    });
}

#[test]
fn squares_as_products() {
    respelled("Pow(x, 2) as Mul(x, x)", |graph| {
        replaced(graph, |old, before| {
            let squares = old.op_type() == "Pow"
                && before.node.iter().any(|n| n.op_type() == "ReduceMean" && n.input[0] == old.output[0]);
            squares.then(|| vec![node("Mul", &[&old.input[0], &old.input[0]], &old.output[0])])
        })
    });
    respelled("Pow(x, 2) with an exponent of its own", |graph| {
        replaced(graph, |old, before| {
            let squares = old.op_type() == "Pow"
                && before.node.iter().any(|n| n.op_type() == "ReduceMean" && n.input[0] == old.output[0]);
            squares.then(|| vec![node("Pow", &[&old.input[0], "two"], &old.output[0])])
        })
    });
}
