//! Every form of file, what is tolerated in it, and what is refused.

use lstc_data::{Corpus, DataFormat, Inputs, LONGEST_ROW, OnBadRow, Reading, Targets};
use proptest::prelude::*;

use super::{File, SPECIAL, VOCABULARY, file, nano, texts};

const TWO: [(&str, &str); 2] = [("a small dog", "animal"), ("a tall tree", "plant")];

fn rows(corpus: &Corpus) -> Vec<(String, String)> {
    texts(corpus).into_iter().map(|(_, input, target)| (input, target)).collect()
}

fn lines(corpus: &Corpus) -> Vec<u64> {
    (0..corpus.len()).map(|i| corpus.example(i).row).collect()
}

fn expect_two(name: &str, text: impl AsRef<[u8]>, reading: &Reading, at: [u64; 2]) {
    let corpus = file(name, text).read(reading).expect(name);
    assert_eq!(rows(&corpus), TWO.map(|(i, t)| (i.to_owned(), t.to_owned())), "{name}");
    assert_eq!(lines(&corpus), at, "{name}");
    assert_eq!((corpus.len(), corpus.skipped().count, corpus.truncated()), (2, 0, (0, 0)));
}

#[test]
fn each_form_is_read() {
    let plain = Reading::default();
    let json = r#"{"text": "a small dog", "label": "animal"}
{"label": "plant", "id": [1, {"x": null}], "text": "a tall tree"}
"#;
    for name in ["a.jsonl", "a.json", "a.ndjson", "a.JSONL"] {
        expect_two(name, json, &plain, [1, 2]);
    }
    expect_two("a.csv", "text,label\na small dog,animal\na tall tree,plant\n", &plain, [2, 3]);
    expect_two("a.csv", "id,label,text\n1,animal,\"a small dog\"\n2,\"plant\",a tall tree", &plain, [2, 3]);
    expect_two("a.tsv", "text\tlabel\na small dog\tanimal\na tall tree\tplant\n", &plain, [2, 3]);
    let ids = |text: &str| nano().encode(text, 128).expect("tokens").ids;
    let tokenised = format!(
        "{{\"input_ids\": {:?}, \"labels\": {:?}}}\n{{\"input_ids\": {:?}, \"labels\": {:?}}}\n",
        ids(TWO[0].0),
        ids(TWO[0].1),
        ids(TWO[1].0),
        ids(TWO[1].1)
    );
    expect_two("a.jsonl", &tokenised, &plain, [1, 2]);
    let without = file("a.jsonl", &tokenised).read_with(&plain, None).expect("no tokenizer is needed");
    assert_eq!(without.sha256(), file("b.jsonl", json).read(&plain).expect("the same rows").sha256());
    let named = Reading { format: Some(DataFormat::Csv), ..plain };
    expect_two("a.txt", "text,label\na small dog,animal\na tall tree,plant\n", &named, [2, 3]);
}

#[test]
fn byte_order_marks_line_ends_and_blank_lines_are_tolerated() {
    let plain = Reading::default();
    let json = "\u{feff}{\"text\":\"a small dog\",\"label\":\"animal\"}\r\n\r\n  \n\
                {\"text\":\"a tall tree\",\"label\":\"plant\"}";
    expect_two("a.jsonl", json, &plain, [1, 4]);
    let csv = "\u{feff}text,label\r\na small dog,animal\r\n\r\na tall tree,plant\r\n";
    expect_two("a.csv", csv, &plain, [2, 4]);
}

#[test]
fn a_quoted_field_may_hold_anything() {
    let csv = "text,label\n\"one, \"\"two\"\"\nthree\",x\nfour,y\n";
    let corpus = file("a.csv", csv).read(&Reading::default()).expect("it is CSV");
    assert_eq!(lines(&corpus), [2, 4]);
    let ids = nano().encode("one, \"two\"\nthree", 128).expect("tokens").ids;
    assert_eq!(corpus.example(0).source, ids);
}

#[test]
fn fields_are_named_and_inputs_prefixed() {
    let reading = Reading {
        input_field: "sentence".to_owned(),
        target_field: "3".to_owned(),
        prefix: "classify: ".to_owned(),
        ..Reading::default()
    };
    let corpus = file("a.jsonl", r#"{"sentence": "a dog", "3": "animal"}"#).read(&reading).expect("a row");
    assert_eq!(corpus.example(0).source, nano().encode("classify: a dog", 128).expect("tokens").ids);
    let blank = file("a.jsonl", r#"{"sentence": "", "3": "animal"}"#);
    assert_eq!(rows(&blank.read(&reading).expect("the prefix stands there"))[0].0, "classify: ");
}

#[test]
fn an_input_may_be_made_of_several_fields() {
    let template = |text: &str| Reading { template: Some(text.to_owned()), ..Reading::default() };
    let fields =
        |names: &str| Reading { input_field: names.to_owned(), prefix: "mrpc ".to_owned(), ..Reading::default() };
    let json = r#"{"sentence1": "a {dog}", "sentence2": 7, "label": "animal"}"#;
    let table = "label,sentence2,sentence1\nanimal,7,a {dog}\n";
    let ids = |text: &str| nano().encode(text, 128).expect("tokens").ids;
    for (reading, text) in [
        (template("mrpc sentence1: {sentence1} sentence2: {sentence2}"), "mrpc sentence1: a {dog} sentence2: 7"),
        (template("{{{sentence2}}} {sentence1}{sentence2}"), "{7} a {dog}7"),
        (fields("sentence1,sentence2"), "mrpc sentence1: a {dog} sentence2: 7"),
        (fields("sentence2"), "mrpc 7"),
    ] {
        for (name, content) in [("a.jsonl", json), ("a.csv", table)] {
            assert_eq!(
                file(name, content).read(&reading).expect("a row").example(0).source,
                ids(text),
                "{name}: {text}"
            );
        }
    }
    // A field that is not there is named, with those that are.
    let unknown = template("{sentence1} {premise}");
    let told = file("a.csv", table).refusal(&unknown);
    assert!(told.contains("no column `premise`; it has `label`, `sentence2`, `sentence1`"), "{told}");
    let told = file("a.jsonl", json).refusal(&unknown);
    assert!(told.contains("no field `premise`; it has `label`, `sentence1`, `sentence2`"), "{told}");
    let told = file("a.csv", table).refusal(&template("{sentence1} {sentence2"));
    assert!(told.contains("a `{` is not closed"), "{told}");
    let blank = file("a.csv", "sentence1,sentence2,label\n ,,animal\n").refusal(&template("{sentence1}{sentence2}"));
    assert!(blank.contains("field `sentence1`, `sentence2` is empty"), "{blank}");
}

#[test]
fn rows_may_have_no_target() {
    let reading = Reading { targets: Targets::Absent, ..Reading::default() };
    for (name, content) in [
        ("a.jsonl", "{\"text\": \"a small dog\"}\n{\"text\": \"a tall tree\", \"label\": null}\n"),
        ("a.csv", "text,other\na small dog,1\na tall tree,2\n"),
        ("a.tsv", "label\ttext\n\ta small dog\nplant\ta tall tree\n"),
    ] {
        let corpus = file(name, content).read(&reading).expect("two rows");
        let texts: Vec<String> = rows(&corpus).into_iter().map(|(input, _)| input).collect();
        assert_eq!(texts, ["a small dog", "a tall tree"], "{name}");
        assert_eq!(corpus.example(1).target, [1], "the end token alone");
        assert!(
            file(name, content).read(&Reading::default()).is_err(),
            "{name}: targets are missed where they are read"
        );
    }
    let ids = file("a.jsonl", "{\"input_ids\": [4, 9, 1, 0]}\n").read_with(&reading, None).expect("a row");
    assert_eq!((ids.example(0).source, ids.example(0).target), (&[4, 9, 1][..], &[1][..]));
}

#[test]
fn numbers_and_booleans_stand_for_their_text() {
    let json = "{\"text\": 12, \"label\": true}\n{\"text\": -1.5, \"label\": 3}\n";
    let corpus = file("a.jsonl", json).read(&Reading::default()).expect("two rows");
    for (index, (text, label)) in [("12", "true"), ("-1.5", "3")].into_iter().enumerate() {
        assert_eq!(corpus.example(index).source, nano().encode(text, 128).expect("tokens").ids);
        assert_eq!(corpus.example(index).target, nano().encode(label, 128).expect("tokens").ids);
    }
}

#[test]
fn numbers_that_differ_are_different_texts() {
    let numbers = [
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551617",
        "0.1234567890123456789",
        "0.1234567890123456788",
        "1e400",
        "1e401",
        "1e-400",
    ];
    let json: String = numbers.iter().map(|n| format!("{{\"text\": \"a\", \"label\": {n}}}\n")).collect();
    let corpus = file("a.jsonl", json).read(&Reading::default()).expect("rows");
    for (index, number) in numbers.into_iter().enumerate() {
        assert_eq!(corpus.example(index).target, nano().encode(number, 128).expect("tokens").ids, "{number}");
    }
    // In its shortest form.
    let corpus = file("a.jsonl", "{\"text\": 1.50, \"label\": 0.10e1}\n").read(&Reading::default()).expect("a row");
    assert_eq!(corpus.example(0).source, nano().encode("1.5", 128).expect("tokens").ids);
    assert_eq!(corpus.example(0).target, nano().encode("1.0", 128).expect("tokens").ids);
}

#[test]
fn inputs_are_those_of_the_rows_that_were_read() {
    let File { folder, path } = file("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    let reading = Reading { targets: Targets::Absent, ..Reading::default() };
    let read = || Corpus::read(&path, &reading, Some(nano()), SPECIAL, folder.path(), VOCABULARY, &mut |_, _| {});
    let corpus = read().expect("two rows");
    let mut inputs = Inputs::open(&path, &reading, &corpus).expect("it is the same file");
    assert_eq!(inputs.at(2).expect("a row").to_string(), "two");
    inputs.finish().expect("it is the same file");
    let changed = |error: anyhow::Error| error.to_string().contains("a.jsonl` has changed since its rows were read");
    // In place, while it is read.
    std::fs::write(&path, "{\"text\": \"two\"}\n{\"text\": \"one\"}\n").expect("it is ours");
    assert!(inputs.finish().is_err_and(changed));
    // Before.
    assert!(Inputs::open(&path, &reading, &corpus).err().is_some_and(changed));
    // By another file under its name.
    let corpus = read().expect("two rows");
    std::fs::write(folder.path().join("new"), "{\"text\": \"two\"}\n{\"text\": \"one\"}\n").expect("a file");
    std::fs::rename(folder.path().join("new"), &path).expect("it is ours");
    assert!(Inputs::open(&path, &reading, &corpus).err().is_some_and(changed));
}

#[test]
fn long_examples_are_cut_and_counted() {
    let reading = Reading { max_source_length: 4, max_target_length: 2, ..Reading::default() };
    let json = "{\"text\": \"a very small dog in a garden\", \"label\": \"animal of the house\"}\n\
                {\"text\": \"a\", \"label\": \"of\"}\n";
    let corpus = file("a.jsonl", json).read(&reading).expect("two rows");
    assert_eq!(corpus.truncated(), (1, 1));
    assert_eq!((corpus.example(0).source.len(), corpus.example(0).target.len()), (4, 2));
    let ids = r#"{"input_ids": [11, 12, 13, 14, 15, 1, 0, 0], "labels": [21, 22, 1, -100, -100]}"#;
    let corpus = file("a.jsonl", ids).read_with(&reading, None).expect("a row");
    assert_eq!(corpus.example(0).source, [11, 12, 13, 1]);
    assert_eq!(corpus.example(0).target, [21, 1]);
    assert_eq!(corpus.truncated(), (1, 1));
}

#[test]
fn the_content_has_a_hash() {
    let sha256 = |text: &str| file("a.jsonl", text).read(&Reading::default()).expect("rows").sha256().to_owned();
    let one = sha256("{\"text\": \"a\", \"label\": \"b\"}\n");
    assert_eq!(one.len(), 64);
    assert_eq!(one, sha256("\n{\"label\": \"b\", \"text\": \"a\"}"));
    assert_ne!(one, sha256("{\"text\": \"a\", \"label\": \"c\"}\n"));
    assert_ne!(one, sha256("{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"a\", \"label\": \"b\"}\n"));
}

#[test]
fn distinct_targets_are_listed_where_they_are_few() {
    let json: String = ["plant", "animal", "plant", "food"]
        .iter()
        .map(|label| format!("{{\"text\": \"it\", \"label\": \"{label}\"}}\n"))
        .collect();
    let corpus = file("a.jsonl", json).read(&Reading::default()).expect("rows");
    let mut expected: Vec<Vec<u32>> =
        ["animal", "food", "plant"].iter().map(|l| nano().encode(l, 32).expect("tokens").ids).collect();
    expected.sort();
    assert_eq!(corpus.targets(3), Some(expected));
    assert_eq!(corpus.targets(2), None);
}

#[test]
fn progress_ends_with_the_file() {
    let json = "{\"text\": \"a dog\", \"label\": \"animal\"}\n".repeat(2000);
    let file = file("a.jsonl", &json);
    let mut told = Vec::new();
    Corpus::read(
        &file.path,
        &Reading::default(),
        Some(nano()),
        SPECIAL,
        file.folder.path(),
        VOCABULARY,
        &mut |a, b| {
            told.push((a, b));
        },
    )
    .expect("rows");
    assert!(told.len() >= 4 && told.is_sorted());
    assert_eq!(told.last(), Some(&(json.len() as u64, json.len() as u64)));
}

#[test]
fn bad_rows_are_named() {
    const GOOD: &str = "{\"text\": \"a\", \"label\": \"b\"}\n";
    let told = |row: &str| {
        let refusal = file("a.jsonl", format!("{GOOD}{row}\n{GOOD}")).refusal(&Reading::default());
        let (why, hint) = refusal.split_once("\nhint: ").expect("a hint");
        assert!(hint.contains("--on-bad-row skip"), "{hint}");
        format!("{why}\n")
    };
    let bad = [
        r#"{"sentence": "a", "label": "b"}"#,
        r#"{}"#,
        r#"{"text": null, "label": "b"}"#,
        r#"{"text": "a", "label": ""}"#,
        r#"{"text": " ", "label": "b"}"#,
        r#"{"text": {"a": 1}, "label": "b"}"#,
        r#"{"text": ["a"], "label": "b"}"#,
        r#"{"text": "a", "label": "b""#,
        r#"{"text": "a", "label": "b"} x"#,
        r#"{"text": "\ud800", "label": "b"}"#,
        r#"["a", "b"]"#,
        r#""a""#,
        r#"{"input_ids": [1], "labels": [1]}"#,
    ];
    insta::assert_snapshot!(bad.iter().map(|row| told(row)).collect::<String>(), @r"
    `a.jsonl`, line 2: no field `text`; it has `label`, `sentence`
    `a.jsonl`, line 2: no field `text`; it has none
    `a.jsonl`, line 2: field `text` is null
    `a.jsonl`, line 2: field `label` is empty
    `a.jsonl`, line 2: field `text` is empty
    `a.jsonl`, line 2: field `text` is an object, not text
    `a.jsonl`, line 2: field `text` is an array, not text
    `a.jsonl`, line 2: it is not JSON: EOF while parsing an object at column 26
    `a.jsonl`, line 2: it is not JSON: trailing characters at column 29
    `a.jsonl`, line 2: it is not JSON: unexpected end of hex escape at column 17
    `a.jsonl`, line 2: it is JSON, but not an object
    `a.jsonl`, line 2: it is JSON, but not an object
    `a.jsonl`, line 2: no field `text`; it has `input_ids`, `labels`
    ");
}

#[test]
fn bad_rows_of_token_ids_are_named() {
    const GOOD: &str = "{\"input_ids\": [5, 1], \"labels\": [6, 1]}\n";
    let told = |row: &str| {
        let refusal = file("a.jsonl", format!("{GOOD}{row}\n")).refusal(&Reading::default());
        format!("{}\n", refusal.split_once("\nhint: ").expect("a hint").0)
    };
    let bad = [
        r#"{"text": "a", "label": "b"}"#,
        r#"{"input_ids": [5, 4096, 1], "labels": [6, 1]}"#,
        r#"{"input_ids": [5, 1], "labels": [4294967301, 1]}"#,
        r#"{"input_ids": [5, -1], "labels": [6, 1]}"#,
        r#"{"input_ids": [5, 1.5], "labels": [6, 1]}"#,
        r#"{"input_ids": [], "labels": [6, 1]}"#,
        r#"{"input_ids": [5, 1], "labels": [-100, -100]}"#,
        r#"{"input_ids": [[5], 1], "labels": [6, 1]}"#,
    ];
    insta::assert_snapshot!(bad.iter().map(|row| told(row)).collect::<String>(), @r"
    `a.jsonl`, line 2: no field `input_ids`; it has `label`, `text`
    `a.jsonl`, line 2: field `input_ids` has token 4096, but the model has embeddings for 4096 tokens
    `a.jsonl`, line 2: field `labels` has 4294967301 at index 0, which is not a token id
    `a.jsonl`, line 2: field `input_ids` has -1 at index 1, which is not a token id
    `a.jsonl`, line 2: field `input_ids` is not an array of integers
    `a.jsonl`, line 2: field `input_ids` is empty
    `a.jsonl`, line 2: field `labels` has no label that counts
    `a.jsonl`, line 2: field `input_ids` is not an array of integers
    ");
}

#[test]
fn bad_rows_of_a_table_are_named() {
    let told = |rows: &[u8]| {
        let refusal = file("a.csv", [b"text,label\n\"a\n\",b\n", rows].concat()).refusal(&Reading::default());
        format!("{}\n", refusal.split_once("\nhint: ").expect("a hint").0)
    };
    let bad: [&[u8]; 6] = [b"a\n", b"a,b,c\n", b",b\n", b"a, \n", b"a,\xff\n", b"a,\"b\"c\nc,d\n"];
    insta::assert_snapshot!(bad.iter().map(|rows| told(rows)).collect::<String>(), @r"
    `a.csv`, line 4: it has 1 field, but the header has 2
    `a.csv`, line 4: it has 3 fields, but the header has 2
    `a.csv`, line 4: field `text` is empty
    `a.csv`, line 4: field `label` is empty
    `a.csv`, line 4: field `label` is not UTF-8; `iconv -f LATIN1 -t UTF-8` converts Latin-1
    `a.csv`, line 4: text follows the closing quote of field 2: in CSV a quote inside quotes is doubled (--quoting none reads quotes as text)
    ");
}

#[test]
fn bad_rows_are_skipped_and_counted() {
    let mut bytes = b"nothing\n{\"text\": \"a small dog\", \"label\": \"animal\"}\n".to_vec();
    bytes.extend_from_slice(b"{\"text\": \"\xff\", \"label\": \"x\"}\n");
    bytes.extend_from_slice("{\"label\": \"x\"}\n".repeat(700).as_bytes());
    bytes.extend_from_slice(b"{\"text\": \"a tall tree\", \"label\": \"plant\"}\n");
    let (corpus, reasons) = file("a.jsonl", bytes).skipped(Reading::default());
    assert_eq!(lines(&corpus), [2, 704]);
    assert_eq!(corpus.skipped().count, 702);
    insta::assert_snapshot!(reasons.join("\n"), @r"
    `a.jsonl`, line 1: it is not JSON: expected ident at column 2
    `a.jsonl`, line 3: byte 11 of the line is not UTF-8; `iconv -f LATIN1 -t UTF-8` converts Latin-1
    `a.jsonl`, line 4: no field `text`; it has `label`
    `a.jsonl`, line 5: no field `text`; it has `label`
    `a.jsonl`, line 6: no field `text`; it has `label`
    ");
}

#[test]
fn the_first_bad_row_is_the_one_that_is_told() {
    // The first is found when its chunk is tokenised, the second when it is parsed.
    let json = "{\"text\": \"a\", \"label\": \"\"}\n{\"text\": \"a\"}\n";
    assert!(file("a.jsonl", json).refusal(&Reading::default()).contains("line 1"));
}

#[test]
fn what_is_no_data_is_refused() {
    let told = |name: &str, text: &str| format!("{}\n", file(name, text).refusal(&Reading::default()));
    let refusals = [
        told("a.parquet", ""),
        told("a", ""),
        told("a.jsonl.gz", ""),
        told("a.jsonl", ""),
        told("a.jsonl", "\n \n"),
        told("a.json", "[\n{\"text\": \"a\", \"label\": \"b\"}\n]\n"),
        told("a.csv", ""),
        told("a.csv", "text,label\n"),
        told("a.csv", "sentence,label\na,b\n"),
        told("a.csv", "text,label,text\na,b,c\n"),
        told("a.tsv", "text,label\na,b\n"),
    ];
    insta::assert_snapshot!(refusals.concat(), @r#"
    `a.parquet` is a Parquet file, which lstc does not read: it reads text in UTF-8
    hint: convert it:
      python -c "import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)" a.parquet a.jsonl
    the extension of `a` does not say in which format its data is
    hint: lstc reads `.jsonl`, `.json` and `.ndjson` (one JSON object a line), `.csv` and `.tsv`; for files with other names, pass --data-format jsonl, csv or tsv
    `a.jsonl.gz` is compressed with gzip, which lstc does not read: it reads text in UTF-8
    hint: convert it:
      gzip -dc a.jsonl.gz > a.jsonl
    `a.jsonl` holds no rows
    `a.jsonl` holds no rows
    cannot read `a.json`: it begins with a JSON array, but each line must be an object of its own
    hint: `jq -c '.[]'` turns an array into lines
    `a.csv` is empty
    `a.csv` holds no rows
    `a.csv` has no column `text`; it has `sentence`, `label`
    hint: --input-field and --target-field name the columns; the first row of the file is its header
    `a.csv` has more than one column `text`: `text`, `label`, `text`
    `a.tsv` has no column `text`; it has `text,label`
    hint: its columns are separated by commas: --data-format csv
    "#);
    let all_bad = Reading { on_bad_row: OnBadRow::Skip, ..Reading::default() };
    insta::assert_snapshot!(file("a.jsonl", "x\ny\n").refusal(&all_bad), @"no row of `a.jsonl` can be used, 2 are bad: `a.jsonl`, line 1: it is not JSON: expected value at column 1");
    let short = Reading { max_target_length: 1, ..Reading::default() };
    insta::assert_snapshot!(file("a.jsonl", "").refusal(&short), @"`max_target_length` is 1: at least 2 are needed, for one token and the end token");
}

#[test]
fn text_without_a_tokenizer_is_refused() {
    let file = file("a.jsonl", "{\"text\": \"a\", \"label\": \"b\"}\n");
    let error = file.read_with(&Reading::default(), None).expect_err("there is no tokenizer");
    let hinted = error.downcast_ref::<lstc_base::report::Hinted>().expect("a hint");
    assert!(error.to_string().contains("no tokenizer") && hinted.hint().contains("--tokenizer"));
}

#[test]
fn a_folder_or_a_missing_file_is_an_error() {
    let folder = tempfile::Builder::new().suffix(".jsonl").tempdir().expect("a folder");
    let read = |path: &std::path::Path| {
        let error = Corpus::read(path, &Reading::default(), None, SPECIAL, folder.path(), 9, &mut |_, _| {});
        format!("{:#}", error.expect_err("nothing to read"))
    };
    assert!(read(folder.path()).contains("is a folder, but a file of rows is expected"));
    assert!(read(&folder.path().join("none.csv")).contains("cannot read `"));
}

#[test]
fn a_row_that_is_too_long_is_passed_over() {
    let long = "x".repeat(LONGEST_ROW + 10);
    let json = format!("{{\"text\": \"{long}\", \"label\": \"b\"}}\n{{\"text\": \"a\", \"label\": \"b\"}}\n");
    let (corpus, reasons) = file("a.jsonl", json).skipped(Reading::default());
    assert_eq!((lines(&corpus), reasons), (vec![2], vec!["`a.jsonl`, line 1: it is longer than 16 MiB".to_owned()]));
    let csv = format!("text,label\n\"{long}\n\",b\na,b\n");
    let (corpus, reasons) = file("a.csv", csv).skipped(Reading::default());
    assert_eq!((lines(&corpus), reasons), (vec![4], vec!["`a.csv`, line 2: it is longer than 16 MiB".to_owned()]));
    let many = format!("text,label\n{}\na,b\n", ",".repeat(200_000));
    let (corpus, reasons) = file("a.csv", many).skipped(Reading::default());
    assert_eq!(lines(&corpus), [3]);
    assert_eq!(reasons, ["`a.csv`, line 2: it has 200001 fields, but the header has 2"]);
}

#[test]
fn reading_stands_in_yaml() {
    let reading: Reading =
        serde_yaml::from_str("input_field: sentence\non_bad_row: skip\nformat: tsv\n").expect("a reading");
    let expected = Reading {
        input_field: "sentence".to_owned(),
        on_bad_row: OnBadRow::Skip,
        format: Some(DataFormat::Tsv),
        ..Reading::default()
    };
    assert_eq!(reading, expected);
    let text = serde_yaml::to_string(&expected).expect("it can be written");
    assert_eq!(serde_yaml::from_str::<Reading>(&text).expect("what was written"), expected);
    assert!(serde_yaml::from_str::<Reading>("input_feild: x\n").is_err());
}

#[test]
fn no_file_stays_in_the_scratch_folder() {
    let file = file("a.jsonl", "{\"text\": \"a\", \"label\": \"b\"}\n");
    let scratch = tempfile::TempDir::new().expect("a folder");
    let corpus = Corpus::read(
        &file.path,
        &Reading::default(),
        Some(nano()),
        SPECIAL,
        scratch.path(),
        VOCABULARY,
        &mut |_, _| {},
    )
    .expect("a row");
    assert_eq!(std::fs::read_dir(scratch.path()).expect("a folder").count(), 0);
    assert_eq!(corpus.len(), 1);
}

#[test]
fn a_file_that_shrinks_or_grows_meanwhile_is_refused() {
    let json = "{\"text\": \"a dog\", \"label\": \"animal\"}\n".repeat(20_000);
    for change in [0, 100, json.len() as u64 + 5000] {
        let File { folder, path } = file("a.jsonl", &json);
        let other = std::fs::OpenOptions::new().write(true).open(&path).expect("the file is there");
        let skip = Reading { on_bad_row: OnBadRow::Skip, ..Reading::default() };
        let mut at_end = (0, 0);
        let mut resize = |read, of| {
            other.set_len(change).expect("it can be resized");
            at_end = (read, of);
        };
        let corpus = Corpus::read(&path, &skip, Some(nano()), SPECIAL, folder.path(), VOCABULARY, &mut resize);
        let refused = corpus.expect_err("its rows are of no one file").to_string();
        assert!(refused.ends_with("a.jsonl` has changed while it was read"), "{refused}");
        assert!(at_end.0 <= at_end.1);
    }
}

/// Bytes that are nearly rows.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let parts: Vec<Vec<u8>> = [
        "{\"text\": \"a\", \"label\": \"b\"}\n",
        "{\"input_ids\": [1, 2], \"labels\": [3]}\n",
        "text,label\n",
        "text\tlabel\n",
        "{\"text\":",
        "[[[[{{",
        "\"",
        "\"\"",
        ",",
        "\t",
        "\r",
        "\n",
        "1e999",
        "-100",
        "\\u",
        "}",
        "]",
        "\u{feff}",
        "\u{2581}</s>",
    ]
    .into_iter()
    .map(|part| part.as_bytes().to_vec())
    .collect();
    let part = prop_oneof![4 => proptest::sample::select(parts), 1 => proptest::collection::vec(any::<u8>(), 0..8)];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in bytes(), skip: bool) {
        let on_bad_row = if skip { OnBadRow::Skip } else { OnBadRow::Fail };
        for format in [DataFormat::Jsonl, DataFormat::Csv, DataFormat::Tsv] {
            let reading = Reading { format: Some(format), on_bad_row, ..Reading::default() };
            if let Ok(corpus) = file("a", &bytes).read(&reading) {
                prop_assert!(!corpus.is_empty());
                for index in 0..corpus.len() {
                    let example = corpus.example(index);
                    prop_assert!(!example.source.is_empty() && !example.target.is_empty());
                    prop_assert!(example.source.iter().chain(example.target).all(|id| *id < VOCABULARY));
                }
            }
        }
    }
}
