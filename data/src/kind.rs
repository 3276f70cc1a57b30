//! Files that hold rows, but not as text that lstc reads: what they are, and the command that converts them.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::anyhow;
use lstc_base::report::{Hinted, word};

/// A kind of file that is refused.
pub struct Kind {
    name: &'static str,
    /// What such a file begins with. Empty if only the name shows it.
    magic: &'static [u8],
    extensions: &'static [&'static str],
    /// The command that converts `{file}` to text, called `{text}`; `{stem}` is the file's name without the last extension.
    convert: &'static str,
}

const fn kind(
    name: &'static str,
    magic: &'static [u8],
    extensions: &'static [&'static str],
    convert: &'static str,
) -> Kind {
    Kind { name, magic, extensions, convert }
}

const KINDS: &[Kind] = &[
    kind("compressed with gzip", b"\x1f\x8b", &["gz"], "gzip -dc {file} > {text}"),
    kind("compressed with bzip2", b"BZh91AY&SY", &["bz2"], "bzip2 -dc {file} > {text}"),
    kind("compressed with xz", b"\xfd7zXZ\0", &["xz"], "xz -dc {file} > {text}"),
    kind("compressed with zstd", b"\x28\xb5\x2f\xfd", &["zst"], "zstd -dc {file} > {text}"),
    kind("compressed with lz4", b"\x04\x22\x4d\x18", &["lz4"], "lz4 -dc {file} > {text}"),
    kind("a 7z archive", b"7z\xbc\xaf\x27\x1c", &["7z"], "7z x {file}"),
    kind("an Excel workbook", b"", &["xlsx"], "libreoffice --headless --convert-to csv {file}"),
    kind("a zip archive", b"PK\x03\x04", &["zip"], "unzip {file}"),
    kind(
        "a Parquet file",
        b"PAR1\x15",
        &["parquet"],
        "python -c \"import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient='records', \
         lines=True)\" {file} {stem}.jsonl",
    ),
    kind(
        "an Arrow file",
        b"ARROW1\0\0",
        &["arrow", "feather"],
        "python -c \"import sys, pandas; pandas.read_feather(sys.argv[1]).to_json(sys.argv[2], orient='records', \
         lines=True)\" {file} {stem}.jsonl",
    ),
    kind(
        "an Arrow stream, as Hugging Face datasets keep their rows",
        b"\xff\xff\xff\xff",
        &[],
        "python -c \"import sys, datasets; datasets.Dataset.from_file(sys.argv[1]).to_json(sys.argv[2])\" {file} \
         {stem}.jsonl",
    ),
    kind(
        "a pickle",
        b"\x80",
        &["pkl", "pickle"],
        "python -c \"import sys, pandas; pandas.read_pickle(sys.argv[1]).to_json(sys.argv[2], orient='records', \
         lines=True)\" {file} {stem}.jsonl",
    ),
    kind("UTF-32", b"\xff\xfe\0\0", &[], "iconv -f UTF-32 -t UTF-8 {file} > {text}"),
    kind("UTF-32", b"\0\0\xfe\xff", &[], "iconv -f UTF-32 -t UTF-8 {file} > {text}"),
    kind("UTF-16", b"\xff\xfe", &[], "iconv -f UTF-16 -t UTF-8 {file} > {text}"),
    kind("UTF-16", b"\xfe\xff", &[], "iconv -f UTF-16 -t UTF-8 {file} > {text}"),
];

const UTF_16_LE: Kind = kind("UTF-16 (little-endian)", b"", &[], "iconv -f UTF-16LE -t UTF-8 {file} > {text}");
const UTF_16_BE: Kind = kind("UTF-16 (big-endian)", b"", &[], "iconv -f UTF-16BE -t UTF-8 {file} > {text}");

impl Kind {
    /// # Errors
    /// A file that begins like one of these kinds, or is named like one of them.
    pub fn check(path: &Path, start: &[u8]) -> anyhow::Result<()> {
        let Some(kind) = Kind::of(path, start) else { return Ok(()) };
        let part = |part: Option<&OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let (stem, extension) = (part(path.file_stem()), part(path.extension()));
        let text = match kind.is_extension(&extension) {
            true => stem.clone(),
            false => format!("{stem}.converted.{extension}"),
        };
        let beside = |name: String| word(&path.with_file_name(name).to_string_lossy());
        let convert = kind
            .convert
            .replace("{file}", &word(&path.to_string_lossy()))
            .replace("{stem}", &beside(stem))
            .replace("{text}", &beside(text));
        let error = anyhow!("`{}` is {}, which lstc does not read: it reads text in UTF-8", path.display(), kind.name);
        Err(Hinted::new(error, format!("convert it:\n  {convert}")).into())
    }

    fn is_extension(&self, extension: &str) -> bool {
        self.extensions.iter().any(|own| own.eq_ignore_ascii_case(extension))
    }

    fn of(path: &Path, start: &[u8]) -> Option<&'static Kind> {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let is_called = |kind: &&Kind| kind.is_extension(extension);
        let begins = |kind: &&Kind| !kind.magic.is_empty() && start.starts_with(kind.magic);
        let called = KINDS.iter().find(is_called);
        called.or_else(|| KINDS.iter().find(begins)).or_else(|| without_mark(start))
    }
}

/// UTF-16 without a byte-order mark: its ASCII characters have a zero byte on one side, and text in UTF-8 has none.
fn without_mark(start: &[u8]) -> Option<&'static Kind> {
    let start = &start[..start.len().min(4096) & !1];
    let zeros = |offset: usize| start.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
    match (start, zeros(0), zeros(1)) {
        ([first, 0, ..], 0, _) if *first != 0 => Some(&UTF_16_LE),
        ([0, _, ..], _, 0) => Some(&UTF_16_BE),
        _ => None,
    }
}
