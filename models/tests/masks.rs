//! What masks compute, on exports whose masks are unusual: `tests/masks/make.py` writes them.

use std::path::{Path, PathBuf};

use lstc_graph::{Graph, join, load};
use lstc_models::{Anatomy, AttentionKind, InputRole, Marks, PaddingMask, Refused, TowerKind, model_inputs, recognise};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/masks")
}

fn read(name: &str) -> Graph {
    load(&folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn recognised(mut graph: Graph) -> Result<(Graph, Anatomy), Refused> {
    let anatomy = recognise(&mut graph)?;
    Ok((graph, anatomy))
}

/// The inputs of a model that is accepted, with their parts.
#[track_caller]
fn roles(name: &str) -> String {
    let (graph, anatomy) = recognised(read(name)).unwrap_or_else(|refused| panic!("{name}: {refused}"));
    let role = |input: lstc_models::ModelInput| {
        let tower = anatomy.towers[input.tower].kind;
        let role = match input.role {
            InputRole::Tokens => "tokens",
            InputRole::Mask => "mask",
            InputRole::Padding => "padding",
        };
        format!("{} {tower} {role}", graph.value(input.value).name)
    };
    model_inputs(&graph, &anatomy).into_iter().map(role).collect::<Vec<_>>().join(", ")
}

/// What hides padding from the attentions over the source: the encoder's, and the decoder's.
#[track_caller]
fn masks(name: &str) -> Vec<Option<PaddingMask>> {
    let (_, anatomy) = recognised(read(name)).unwrap_or_else(|refused| panic!("{name}: {refused}"));
    let of = |tower: usize, kind| anatomy.towers[tower].blocks[0].attention(kind).expect("it has one").mask;
    vec![of(0, AttentionKind::SelfAttention), of(1, AttentionKind::Cross)]
}

#[track_caller]
fn refused(name: &str) -> String {
    match recognised(read(name)) {
        Ok(_) => panic!("{name} is accepted"),
        Err(refused) => refused.to_string(),
    }
}

#[track_caller]
fn is_refused(name: &str, words: &[&str]) {
    let text = refused(name);
    for word in words {
        assert!(text.contains(word), "{name}: `{word}` is not in: {text}");
    }
}

#[test]
fn ones_mark_tokens_or_padding_as_the_graph_has_it() {
    assert_eq!(
        roles("plain.onnx"),
        "input_ids encoder tokens, attention_mask encoder mask, decoder_input_ids decoder tokens"
    );
    assert_eq!(
        roles("inverted.onnx"),
        "input_ids encoder tokens, attention_mask encoder padding, decoder_input_ids decoder tokens"
    );
    for (name, marks) in [("plain.onnx", Marks::Tokens), ("inverted.onnx", Marks::Padding)] {
        for mask in masks(name) {
            assert_eq!(mask.map(|m| m.marks), Some(marks), "{name}");
        }
    }
}

#[test]
fn a_mask_of_numbers_that_are_added_is_refused() {
    is_refused("added_as_it_is.onnx", &["block 0 of the encoder", "`attention_mask` holds ones and zeros"]);
}

#[test]
fn padding_may_be_what_has_the_token_of_padding() {
    assert_eq!(roles("of_tokens.onnx"), "input_ids encoder tokens, decoder_input_ids decoder tokens");
    let (graph, _) = recognised(read("of_tokens.onnx")).expect("it is accepted");
    for mask in masks("of_tokens.onnx") {
        assert_eq!(mask.map(|m| graph.value(m.input).name.clone()).as_deref(), Some("input_ids"));
    }
}

#[test]
fn a_target_may_have_a_mask_of_its_own() {
    let (graph, anatomy) = recognised(read("target_mask.onnx")).expect("it is accepted");
    let own = anatomy.towers[1].blocks[0].attention(AttentionKind::SelfAttention).expect("it has one").mask;
    assert_eq!(own.map(|m| graph.value(m.input).name.clone()).as_deref(), Some("decoder_attention_mask"));
}

#[test]
fn a_decoder_that_sees_later_positions_is_refused() {
    roles("sees_the_earlier.onnx");
    for name in ["one_token.onnx", "sees_the_next.onnx"] {
        is_refused(name, &["block 0 of the decoder", "see later ones", "export it with several"]);
    }
}

#[test]
fn an_encoder_that_does_not_is_refused() {
    is_refused("causal_encoder.onnx", &["block 0 of the encoder", "hides later positions of the source"]);
}

#[test]
fn a_mask_must_mean_the_same_at_long_lengths() {
    is_refused("sees_the_far.onnx", &["block 0 of the decoder", "at lengths of 65 and 64", "see later ones"]);
    is_refused("near_by.onnx", &["block 0 of the encoder", "at lengths of 65 and 64", "padding marked in"]);
}

#[test]
fn queries_may_be_hidden_with_the_keys_but_not_alone() {
    roles("of_both.onnx");
    is_refused("of_queries.onnx", &["block 0 of the encoder", "hides the queries"]);
}

#[test]
fn a_softmax_over_minus_infinity_alone_is_refused() {
    is_refused("of_both_infinite.onnx", &["block 0 of the encoder", "minus infinity", "is not a number"]);
}

#[test]
fn which_attention_reads_padding_is_each_ones_own() {
    let reads = |decoder: &str, masked: bool| {
        let (encoder, decoder) = (read("pair/encoder_model.onnx"), read(decoder));
        let named = |graph: &Graph, name: &str| graph.find(name).expect("make.py names it so");
        let mut wires = vec![(named(&decoder, "states"), named(&encoder, "last_hidden_state"))];
        if masked {
            wires.push((named(&decoder, "encoder_attention_mask"), named(&encoder, "attention_mask")));
        }
        let joined = join(encoder, &decoder, &wires).expect("they are of one model");
        recognised(joined).expect("it is accepted").1.reads_padding()
    };
    assert_eq!(reads("pair/decoder_model.onnx", true), vec![]);
    let cross = (TowerKind::Decoder, AttentionKind::Cross, vec![0]);
    assert_eq!(reads("pair_unmasked/decoder_model.onnx", false), vec![cross]);
}

#[test]
fn a_target_of_one_token_is_refused() {
    is_refused("fixed_target_1.onnx", &["the decoder: `decoder_input_ids`", "is fixed at 1 token", "a dynamic axis"]);
    roles("fixed_batch_1.onnx");
}
