//! What models of other families are said to look like; `tests/likeness/` has them, as PyTorch's exporters write them, without names.

use std::path::{Path, PathBuf};

use lstc_graph::{Graph, load};
use lstc_models::{Build, Likeness, Place, Refused, TowerKind, Use, recognise};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn open(path: &Path) -> Graph {
    load(path).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(name: &str) -> Refused {
    let mut graph = open(&folder().join("likeness").join(format!("{name}.onnx")));
    recognise(&mut graph).err().unwrap_or_else(|| panic!("{name} must be refused"))
}

const BERT: &str = "an encoder-only model with layer norm after each sublayer and absolute positions (BERT-like)";
const GPT2: &str = "a decoder-only language model with layer norm and absolute positions (GPT-2-like)";
const LLAMA: &str = "a decoder-only language model with RMS norm and rotary positions (LLaMA-like)";
const BART: &str = "an encoder-decoder model with layer norm after each sublayer and absolute positions (BART-like)";
const VIT: &str = "a vision encoder that cuts pictures, `pixel_values`, into patches, with layer norm and absolute positions \
                   (ViT-like)";
const WHISPER: &str = "a model that turns speech or sound into text, `input_features`, with layer norm and absolute positions \
                       (Whisper-like)";
const EMBEDDED: &str = "a T5 that takes embeddings, `inputs_embeds`, instead of token indices";
const LABELS: &str = "a T5 whose decoder's tokens are computed in the graph, from `labels`";

#[test]
fn each_looks_like_what_it_is() {
    let table = [
        ("bert", BERT),
        ("bert_dynamo", BERT),
        ("bert_classifier", BERT),
        ("bert_masked_lm", BERT),
        ("distilbert", BERT),
        ("gpt2", GPT2),
        ("gpt2_dynamo", GPT2),
        ("llama", LLAMA),
        ("llama_dynamo", LLAMA),
        ("qwen2", LLAMA),
        ("bart", BART),
        ("bart_dynamo", BART),
        ("marian", BART),
        ("vit", VIT),
        ("vit_dynamo", VIT),
        ("vit_features", VIT),
        ("clip_vision", VIT),
        ("clip", "a model of pictures, `pixel_values`, and texts, with layer norm and absolute positions (CLIP-like)"),
        ("whisper", WHISPER),
        ("whisper_dynamo", WHISPER),
        (
            "whisper_encoder",
            "an encoder of speech or sound, `input_features`, with layer norm and absolute positions (Whisper-like)",
        ),
        (
            "whisper_decoder",
            "a decoder without its encoder, whose output it takes as `encoder_hidden_states`, with layer norm and absolute \
             positions",
        ),
        (
            "pix2struct",
            "an encoder-decoder model that takes features, `flattened_patches`, instead of token indices, with RMS norm and \
             relative positions (Pix2Struct-like)",
        ),
        ("t5_embedded", EMBEDDED),
        ("t5_embedded_dynamo", EMBEDDED),
        ("t5_labels", LABELS),
        ("t5_labels_dynamo", LABELS),
        ("t5_labels_loss", LABELS),
        ("t5_encoder", "the encoder of a T5 without its decoder"),
        ("t5_decoder", "the decoder of a T5 without its encoder, whose output it takes as `encoder_hidden_states`"),
        ("t5_step", "a step of a decoder that reads a cache of keys and values, `past.0`, `past.1` and 2 more"),
        ("t5_lora", "a T5, with an unmerged LoRA at 6 matrices"),
        ("t5_lora_dynamo", "a T5, with an unmerged LoRA at 6 matrices"),
    ];
    for (name, wanted) in table {
        let Refused { likeness, refusals } = refused(name);
        assert_eq!(likeness.to_string(), wanted, "{name}: {likeness:#?}");
        assert!(!refusals.is_empty() && !likeness.seen().is_empty(), "{name}");
    }
}

#[test]
fn what_is_read_looks_like_it() {
    let cases = std::fs::read_dir(folder().join("cases")).expect("the cases are committed");
    let models = cases.map(|e| e.expect("a readable folder").path().join("model.onnx")).filter(|p| p.exists());
    for path in models {
        let graph = open(&path);
        let likeness = Likeness::of(&graph);
        assert!(likeness.is_t5(), "{}: {likeness} {likeness:#?}", path.display());
        assert!(likeness.advice().is_none() && likeness.low_rank == 0, "{}", path.display());
    }
    let mut graph = open(&folder().join("cases/refused/unknown_activation.onnx"));
    let verdict = recognise(&mut graph).expect_err("it must be refused").likeness.verdict();
    assert_eq!(verdict, "looks like a T5, with parts that lstc does not understand");
}

#[test]
fn a_use_is_seen_of_each_input() {
    let uses = |name: &str| refused(name).likeness.inputs.into_iter().map(|(_, used)| used).collect::<Vec<_>>();
    assert_eq!(uses("bert"), [Use::Tokens, Use::Mask, Use::Tokens]);
    assert_eq!(uses("t5_labels"), [Use::Tokens, Use::Mask, Use::Computed]);
    assert_eq!(uses("t5_embedded"), [Use::Embedded, Use::Mask, Use::Tokens]);
    assert_eq!(uses("t5_decoder"), [Use::Tokens, Use::Context, Use::Mask]);
    assert_eq!(uses("t5_step")[3..], [Use::Cache; 4]);
    assert_eq!(uses("whisper_decoder"), [Use::Tokens, Use::Context]);
    // Four axes are not a cache, three are not an encoder's output.
    assert_eq!((uses("vit"), uses("whisper_encoder")), (vec![Use::Pictures], vec![Use::Sound]));
    assert_eq!(refused("clip_vision").likeness.build, Build::Encoder);
}

#[test]
fn what_can_be_done_is_said() {
    let advice = |name: &str| refused(name).likeness.advice().unwrap_or_else(|| panic!("{name}: no advice"));
    assert!(advice("t5_labels").contains("`decoder_input_ids` as an input instead of `labels`"));
    assert!(advice("t5_embedded").contains("`input_ids` as an input instead of `inputs_embeds`"));
    assert!(advice("t5_lora").contains("`model = model.merge_and_unload()`"));
    assert!(advice("t5_decoder").contains("the encoder's and the decoder's file"));
    assert!(advice("t5_step").contains("without a cache"));
    for name in ["bert", "llama", "bart", "vit", "whisper", "whisper_decoder"] {
        assert_eq!(refused(name).likeness.advice(), None, "{name}");
    }
}

#[test]
fn a_head_that_is_not_understood_hides_no_other_reason() {
    let Refused { refusals, .. } = refused("bart");
    let has = |place: Place, words: &str| {
        let found = refusals.iter().any(|r| r.place == place && r.reason.contains(words));
        assert!(found, "{place}: {words} is not in {refusals:#?}");
    };
    let bias = "a matrix product with a bias";
    has(Place::Head, bias);
    for kind in [TowerKind::Encoder, TowerKind::Decoder] {
        has(Place::FinalNorm(kind), "is a LayerNormalization");
        has(Place::Stream(Some(kind)), "is a norm of the residual stream itself");
        has(Place::Embedding(kind), "is added to the residual stream");
        has(Place::Block(kind, 0), bias);
    }
    let in_blocks = |kind| refusals.iter().filter(|r| r.place == Place::Block(kind, 0)).count();
    assert_eq!((in_blocks(TowerKind::Encoder), in_blocks(TowerKind::Decoder)), (2, 3), "{refusals:#?}");
}

#[test]
fn the_tower_of_a_decoder_only_model_is_a_decoder() {
    for (name, kind) in
        [("llama", TowerKind::Decoder), ("gpt2_dynamo", TowerKind::Decoder), ("bert", TowerKind::Encoder)]
    {
        let Refused { refusals, .. } = refused(name);
        let of_blocks = refusals.iter().filter(|r| matches!(r.place, Place::Block(..))).collect::<Vec<_>>();
        assert!(
            !of_blocks.is_empty() && of_blocks.iter().all(|r| r.place == Place::Block(kind, 0)),
            "{name}: {refusals:#?}"
        );
    }
}

#[test]
fn reasons_alike_are_listed_up_to_a_number() {
    let mut refused = refused("bart");
    let of_block = refused.refusals.iter().find(|r| r.place == Place::Block(TowerKind::Decoder, 0)).cloned();
    let of_block = of_block.expect("a block is refused");
    refused.refusals = vec![of_block; 9];
    assert_eq!(refused.to_string().lines().count(), 3, "{refused}");
    assert!(refused.to_string().ends_with("likewise in 6 more places"), "{refused}");
    refused.refusals.truncate(3);
    assert!(refused.to_string().lines().count() == 3 && !refused.to_string().contains("likewise"), "{refused}");
}
