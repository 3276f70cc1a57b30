//! ByT5's tokenizer as a `tokenizer.json`: its ids are bytes, so a model comes without a tokenizer file.
//!
//! ```text
//! 0 <pad>   1 </s>   2 <unk>   3 + byte   259 + i: <extra_id_i>
//! ```

use serde_json::{Map, Value, json};

const SPECIAL: [&str; 3] = ["<pad>", "</s>", "<unk>"];
const BYTES: usize = 256;
const EXTRA_IDS: usize = 125;

/// The file's content. The tokenizer is a BPE without merges that falls back to bytes, for every character.
pub fn byte_tokenizer() -> Value {
    let bytes = (0..BYTES).map(|byte| format!("<0x{byte:02X}>"));
    let extra = (0..EXTRA_IDS).map(|id| format!("<extra_id_{id}>"));
    let tokens: Vec<String> = SPECIAL.into_iter().map(str::to_owned).chain(bytes).chain(extra).collect();
    let added = |(id, content): (usize, &String)| {
        let is_own = id < SPECIAL.len();
        (is_own || id >= SPECIAL.len() + BYTES).then(|| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": is_own, "rstrip": is_own, "normalized": false,
                "special": true,
            })
        })
    };
    let added: Vec<Value> = tokens.iter().enumerate().filter_map(added).collect();
    let vocabulary: Map<String, Value> = tokens.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let [_, end, unknown] = SPECIAL;
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let last = || json!({"SpecialToken": {"id": end, "type_id": 0}});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence("A"), last()],
            "pair": [sequence("A"), last(), sequence("B"), last()],
            "special_tokens": {(end): {"id": end, "ids": [1], "tokens": [end]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}
