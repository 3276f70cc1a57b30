//! CSV and TSV: the fields are those that Python's csv module reads, and what is neither is refused.

use lstc_data::{Quoting, Reading};
use serde::Deserialize;

use super::{file, nano};

/// A table that `tables.py` wrote down, with what Python reads from it.
#[derive(Deserialize)]
struct Case {
    name: String,
    text: String,
    rows: Vec<Vec<String>>,
}

fn expect(name: &str, text: &str, rows: &[Vec<String>], reading: &Reading) {
    let header: Vec<&str> = text.lines().next().expect("a header").split([',', '\t']).collect();
    let column = |name: &str| header.iter().position(|column| *column == name).expect("it is there");
    let (input, target) = (column("text"), column("label"));
    let corpus = file(name, text).read(reading).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    assert_eq!(corpus.len(), rows.len(), "{name}");
    let ids = |text: &str| nano().encode(text, 128).expect("tokens").ids;
    for (index, row) in rows.iter().enumerate() {
        let example = corpus.example(index);
        assert_eq!((example.source, example.target), (&ids(&row[input])[..], &ids(&row[target])[..]), "{name} {index}");
    }
}

#[test]
fn tables_hold_what_python_reads_from_them() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("tables.json")).expect("it is committed");
    assert!(cases.len() >= 9);
    for Case { name, text, rows } in &cases {
        expect(name, text, rows, &Reading::default());
        let named = if name.ends_with("tsv") { Quoting::None } else { Quoting::Rfc4180 };
        expect(name, text, rows, &Reading { quoting: Some(named), ..Reading::default() });
    }
}

#[test]
fn quotes_mean_what_is_asked_for() {
    let row = |fields: [&str; 2]| vec![fields.map(str::to_owned).to_vec()];
    let quoting = |quoting| Reading { quoting: Some(quoting), ..Reading::default() };
    expect("a.tsv", "text\tlabel\n\"a\tb\"\tc\n", &row(["a\tb", "c"]), &quoting(Quoting::Rfc4180));
    expect("a.csv", "text,label\n\"a,\"b\n", &row(["\"a", "\"b"]), &quoting(Quoting::None));
}

#[test]
fn a_quote_that_is_not_closed_ends_reading_even_where_bad_rows_are_skipped() {
    let text = "text,label\na,b\n\"We are done .,x\nc,d\ne,f\n";
    let skipping = Reading { on_bad_row: lstc_data::OnBadRow::Skip, ..Reading::default() };
    for reading in [&skipping, &Reading::default()] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(file("a.csv", text).refusal(reading), @r"
            cannot read `a.csv`: the quote that opens a field in line 3 is not closed before the end of the file
            hint: in CSV a field that begins with a quote ends with one; --quoting none reads quotes as text
            ");
        }
    }
    // Closed by another row's: no row is made of two.
    let merged = "text,label\n\"We are done .,x\n\"c\",d\n";
    assert!(
        file("a.csv", merged)
            .refusal(&Reading::default())
            .contains("line 2: text follows the closing quote of field 1")
    );
    assert!(
        file("a.csv", "text,label\n\"I did it ,\" he said .,x\n").refusal(&Reading::default()).contains("is doubled")
    );
}

#[test]
fn another_delimiter_is_named() {
    let told = |name: &str, text: &str| format!("{}\n", file(name, text).refusal(&Reading::default()));
    let refusals = [
        told("a.csv", "text;label\na;b\n"),
        told("a.csv", "text\tlabel\na\tb\n"),
        told("a.tsv", "text,label\na,b\n"),
        told("a.csv", "text\na\n"),
    ];
    insta::assert_snapshot!(refusals.concat(), @r#"
    `a.csv` has no column `text`; it has `text;label`
    hint: its columns are separated by `;`; this converts it to CSV:
      python -c "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter=';'))" < a.csv > converted.csv
    `a.csv` has no column `text`; it has `text	label`
    hint: its columns are separated by tabs: --data-format tsv
    `a.tsv` has no column `text`; it has `text,label`
    hint: its columns are separated by commas: --data-format csv
    `a.csv` has no column `label`; it has `text`
    hint: the first row of the file is its header, and names the columns
    "#);
}

#[test]
fn other_encodings_and_kinds_of_files_are_named_with_the_command_that_converts_them() {
    let utf16 = |text: &str, mark: bool, big: bool| -> Vec<u8> {
        let mark = mark.then_some(0xfeff);
        let unit = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        mark.into_iter().chain(text.encode_utf16()).flat_map(unit).collect()
    };
    let csv = "text,label\r\ngood,1\r\n";
    let json = "{\"text\": \"\u{65e5}\u{672c}\", \"label\": \"a\"}\n";
    let files: [(&str, Vec<u8>, &str, &str); 14] = [
        ("a.csv", utf16(csv, true, false), "is UTF-16,", "iconv -f UTF-16 -t UTF-8"),
        ("a.tsv", utf16(csv, true, true), "is UTF-16,", "iconv -f UTF-16 -t UTF-8"),
        ("a.jsonl", utf16(json, false, false), "is UTF-16 (little-endian)", "iconv -f UTF-16LE"),
        ("a.jsonl", utf16(json, false, true), "is UTF-16 (big-endian)", "iconv -f UTF-16BE"),
        ("a.csv", b"\xff\xfe\0\0t\0\0\0".to_vec(), "is UTF-32", "iconv -f UTF-32"),
        ("a.jsonl.gz", Vec::new(), "compressed with gzip", "gzip -dc"),
        ("a.jsonl", b"\x1f\x8b\x08".to_vec(), "compressed with gzip", "a.converted.jsonl"),
        ("a.csv.zip", b"PK\x03\x04".to_vec(), "a zip archive", "unzip"),
        ("a.csv", b"PK\x03\x04".to_vec(), "a zip archive", "unzip"),
        ("a.parquet", Vec::new(), "a Parquet file", "read_parquet"),
        ("train", b"PAR1\x15\x04".to_vec(), "a Parquet file", "train.jsonl"),
        ("a.arrow", b"\xff\xff\xff\xff\x10".to_vec(), "an Arrow", "a.jsonl"),
        ("a.xlsx", b"PK\x03\x04".to_vec(), "an Excel workbook", "--convert-to csv"),
        ("a.pkl", b"\x80\x04".to_vec(), "a pickle", "read_pickle"),
    ];
    for (name, bytes, what, command) in files {
        let refusal = file(name, bytes).refusal(&Reading::default());
        assert!(
            refusal.contains(&format!("`{name}` ")) && refusal.contains(what) && refusal.contains(command),
            "{refusal}"
        );
    }
    // Text of many scripts is text.
    let text = "{\"text\": \"\u{65e5}\u{672c}\", \"label\": \"\u{0}\"}\n".replace('\u{0}', "\\u0000a");
    assert_eq!(file("a.jsonl", text).read(&Reading::default()).expect("it is UTF-8").len(), 1);
    let latin = file("a.csv", b"text,label\ncaf\xe9,b\n").refusal(&Reading::default());
    assert!(latin.contains("is not UTF-8; `iconv -f LATIN1 -t UTF-8`"), "{latin}");
}

#[test]
fn a_folder_is_not_a_file_of_rows() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("data");
    std::fs::create_dir(&path).expect("the folder is new");
    let refusal = || {
        super::File { folder: tempfile::TempDir::new().expect("a folder"), path: path.clone() }
            .refusal(&Reading::default())
    };
    assert!(refusal().contains("is a folder, but a file of rows is expected"));
    std::fs::write(path.join("dataset_info.json"), "{}").expect("the folder is there");
    assert!(refusal().contains("load_from_disk"));
}
