//! Rows of token ids: what they say of attention, of the decoder's tokens and of labels is honoured, or refused by name.

use lstc_data::{Batch, Fixed, IGNORED, Reading};

use super::{SPECIAL, file};

/// The first row's source, its mask, the decoder's tokens and the labels, in a batch with a row of six tokens each.
fn read(fields: &str) -> [Vec<i64>; 4] {
    let long = "{\"input_ids\": [5, 6, 7, 8, 9, 1], \"labels\": [5, 6, 7, 8, 9, 1]}";
    let corpus = file("a.jsonl", format!("{{{fields}}}\n{long}\n")).read_with(&Reading::default(), None);
    let corpus = corpus.unwrap_or_else(|error| panic!("{fields}: {error:#}"));
    let batch = Batch::new(&corpus, &[0, 1], SPECIAL, &Fixed::default()).expect("two rows");
    let row = |array: &ndarray::Array2<i64>| array.row(0).to_vec();
    let counted = batch.labels.iter().filter(|label| **label != IGNORED).count();
    assert_eq!(batch.counted, counted, "{fields}");
    [row(&batch.source), row(&batch.source_mask), row(&batch.target_in), row(&batch.labels)]
}

const NO: i64 = IGNORED;

#[test]
fn a_mask_decides_which_tokens_are_read() {
    let plain = read(r#""input_ids": [5, 6, 7, 1], "labels": [9, 1]"#);
    assert_eq!(plain[..2], [vec![5, 6, 7, 1, 0, 0], vec![1, 1, 1, 1, 0, 0]]);
    let same = [
        r#""input_ids": [5, 6, 7, 1, 0, 0], "labels": [9, 1, -100]"#,
        r#""input_ids": [5, 6, 7, 1], "attention_mask": [1, 1, 1, 1], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 7, 1], "attention_mask": null, "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 7, 1, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "labels": [9, 1]"#,
        r#""input_ids": [0, 0, 5, 6, 7, 1], "attention_mask": [0, 0, 1, 1, 1, 1], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 7, 1], "token_type_ids": [0, 0, 0, 0], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 7, 1], "labels": [9, 1], "decoder_input_ids": [0, 9], "decoder_attention_mask": [1, 1]"#,
        r#""input_ids": [5, 6, 7, 1], "labels": [9, 1, -100], "decoder_input_ids": [0, 9, 1], "decoder_attention_mask": [1, 1, 0]"#,
        r#""text": "a", "label": 3, "input_ids": [5, 6, 7, 1], "labels": [9, 1]"#,
    ];
    for fields in same {
        assert_eq!(read(fields), plain, "{fields}");
    }
    // Padding that attention sees is a token.
    let seen = read(r#""input_ids": [5, 1, 0], "attention_mask": [1, 1, 1], "labels": [9, 1]"#);
    assert_eq!(seen[1], [1, 1, 1, 0, 0, 0]);
    let hole = read(r#""input_ids": [5, 6, 7, 1], "attention_mask": [1, 0, 1, 1], "labels": [9, 1]"#);
    assert_eq!(hole[..2], [vec![5, 6, 7, 1, 0, 0], vec![1, 0, 1, 1, 0, 0]]);
}

#[test]
fn labels_that_do_not_count_stand_anywhere() {
    // As T5's own shift to the right has it: the padding token stands where a label does not count.
    let inside = read(r#""input_ids": [5, 1], "labels": [-100, 9, -100, 8, 1]"#);
    assert_eq!(inside[2..], [vec![0, 0, 9, 0, 8, 0], vec![NO, 9, NO, 8, 1, NO]]);
    let given = read(r#""input_ids": [5, 1], "labels": [-100, 9, -100, 8, 1], "decoder_input_ids": [0, 7, 9, 6, 8]"#);
    assert_eq!(given[2..], [vec![0, 7, 9, 6, 8, 0], vec![NO, 9, NO, 8, 1, NO]]);
    let corpus = file("a.jsonl", r#"{"input_ids": [5, 1], "labels": [-100, 9, 1]}"#);
    let corpus = corpus.read_with(&Reading::default(), None).expect("a row");
    assert_eq!((corpus.example(0).labels(), corpus.targets(9)), (vec![9, 1], None));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let told = |fields: &str| {
        let refusal = file("a.jsonl", format!("{{{fields}}}\n")).refusal(&Reading::default());
        format!("{}\n", refusal.split_once("\nhint: ").expect("a hint").0)
    };
    let refused = [
        r#""input_ids": [5, 6, 1], "attention_mask": [1, 1], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "attention_mask": [1, 2, 1], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "attention_mask": [[1], [1], [1]], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "attention_mask": [0, 0, 0], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "token_type_ids": [0, 1, 1], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "position_ids": [0, 1, 2], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 1], "decoder_input_ids": [0, 8]"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 1], "decoder_input_ids": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 1], "decoder_input_ids": [0]"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 1], "decoder_input_ids": []"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 8, 1], "decoder_attention_mask": [1, 0, 1]"#,
        r#""input_ids": [5, 6, 1], "labels": [9, 8, 1], "decoder_attention_mask": [1, 1]"#,
        r#""input_ids": [5, 6, 1], "labels": [-100, -100]"#,
        r#""input_ids": [5, 6, 2147483648], "labels": [9, 1]"#,
        r#""input_ids": [5, 6, 1], "label": 1"#,
    ];
    insta::assert_snapshot!(refused.iter().map(|row| told(row)).collect::<String>(), @r"
    `a.jsonl`, line 1: field `attention_mask` has 2 elements, and `input_ids` has 3
    `a.jsonl`, line 1: field `attention_mask` has 2 at index 1, but 0 or 1 is expected
    `a.jsonl`, line 1: field `attention_mask` is not an array of integers
    `a.jsonl`, line 1: field `attention_mask` hides every token
    `a.jsonl`, line 1: field `token_type_ids` is not 0 at index 1, and the model has no token types
    `a.jsonl`, line 1: field `position_ids` is not supported
    `a.jsonl`, line 1: field `decoder_input_ids` has token 8 at index 1, and `labels` has 9 before it: lstc gives the decoder the start token, then the labels
    `a.jsonl`, line 1: field `decoder_input_ids` begins with token 9, and the model's decoder with 0
    `a.jsonl`, line 1: field `decoder_input_ids` has 1 tokens, and 2 labels count
    `a.jsonl`, line 1: field `decoder_input_ids` is empty
    `a.jsonl`, line 1: field `decoder_attention_mask` hides index 1, and lstc lets the decoder see every token up to the last label that counts
    `a.jsonl`, line 1: field `decoder_attention_mask` hides index 2, and lstc lets the decoder see every token up to the last label that counts
    `a.jsonl`, line 1: field `labels` has no label that counts
    `a.jsonl`, line 1: field `input_ids` has 2147483648 at index 2, which is not a token id
    `a.jsonl`, line 1: no field `labels`; it has `input_ids`, `label`
    ");
}

#[test]
fn of_text_and_ids_it_is_said_which_is_read() {
    let note = |row: &str| {
        let corpus = file("a.jsonl", row).read(&Reading::default()).expect("a row");
        (corpus.example(0).source.to_vec(), corpus.note().map(str::to_owned))
    };
    let (ids, said) = note(r#"{"text": "a dog", "label": "b", "input_ids": [5, 1], "labels": [6, 1]}"#);
    assert_eq!(ids, [5, 1]);
    assert_eq!(said.as_deref(), Some("its rows have `input_ids` and `labels`: `text` beside them is not read"));
    let (ids, said) = note(r#"{"text": "a dog", "label": "b", "input_ids": [5, 1]}"#);
    assert_eq!(ids, super::nano().encode("a dog", 128).expect("tokens").ids);
    assert_eq!(said.as_deref(), Some("its rows have `text`, and no `labels` of token ids: `input_ids` is not read"));
    assert_eq!(note(r#"{"text": "a dog", "label": "b", "attention_mask": [1]}"#).1, None);
}
