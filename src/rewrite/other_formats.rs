//! Models that are not ONNX: what they are, and the command that exports them.

use std::io::Read;
use std::path::Path;

use anyhow::anyhow;
use lstc_base::report::{Hinted, word};
use lstc_graph::regular;

/// A format of models.
struct Format {
    name: &'static str,
    /// The offset and value of the bytes that identify it. Empty if the name alone shows it.
    magic: (usize, &'static [u8]),
    /// How the names of its files end.
    suffixes: &'static [&'static str],
    way: Way,
}

/// How to get ONNX from it.
enum Way {
    /// From the Hugging Face folder that it is in.
    Optimum,
    /// By a command, in which `{}` is the folder.
    Command(&'static str),
    /// Only from what it was made from.
    Original,
}

const FORMATS: &[Format] = &[
    Format {
        name: "weights in the safetensors format, without a graph",
        magic: (8, b"{\""),
        suffixes: &[".safetensors", ".safetensors.index.json"],
        way: Way::Optimum,
    },
    Format {
        name: "weights of PyTorch, without a graph",
        magic: (0, b"PK\x03\x04"),
        suffixes: &["pytorch_model.bin", ".pt", ".pth", ".ckpt", ".bin.index.json", ".bin"],
        way: Way::Optimum,
    },
    Format {
        name: "weights in the HDF5 format, as TensorFlow saves them",
        magic: (0, b"\x89HDF"),
        suffixes: &[".h5"],
        way: Way::Optimum,
    },
    Format { name: "weights of Flax", magic: (0, b""), suffixes: &[".msgpack"], way: Way::Optimum },
    Format {
        name: "a SavedModel of TensorFlow",
        magic: (0, b""),
        suffixes: &["saved_model.pb"],
        way: Way::Command("python -m tf2onnx.convert --saved-model {} --opset 17 --output model.onnx"),
    },
    Format { name: "a TensorFlow Lite model", magic: (4, b"TFL3"), suffixes: &[".tflite"], way: Way::Original },
    Format { name: "a GGUF model of llama.cpp", magic: (0, b"GGUF"), suffixes: &[".gguf"], way: Way::Original },
    Format {
        name: "a model in ONNX Runtime's own format",
        magic: (4, b"ORTM"),
        suffixes: &[".ort"],
        way: Way::Original,
    },
];

/// What a server answers instead of a file begins with.
const WEB_PAGE: [&str; 2] = ["<!doctype html", "<html"];

/// # Errors
/// A file that is a model of another format, or a web page.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut start = [0; 16];
    // A file that cannot be read is reported when it is read in full.
    let Ok(read) = regular::open(file).and_then(|mut file| file.read(&mut start)) else { return Ok(()) };
    let text = String::from_utf8_lossy(&start[..read]).to_lowercase();
    if WEB_PAGE.iter().any(|tag| text.trim_start().starts_with(tag)) {
        let error = anyhow!("`{}` is a web page, not a model", file.display());
        return Err(
            Hinted::new(error, "download the model again: open the page to see what the server answered").into()
        );
    }
    if name.ends_with(".onnx") {
        return Ok(());
    }
    let begins = |format: &&Format| {
        let (offset, magic) = format.magic;
        !magic.is_empty() && start[..read].get(offset..).is_some_and(|bytes| bytes.starts_with(magic))
    };
    match FORMATS.iter().find(begins).or_else(|| by_name(&name)) {
        Some(format) => {
            let folder = file.parent().filter(|f| *f != Path::new("")).unwrap_or(Path::new("."));
            Err(refusal(format!("`{}` is {}", file.display(), format.name), &format.way, folder))
        }
        None => Ok(()),
    }
}

/// What a folder without ONNX holds instead, if it is known.
pub fn in_folder(folder: &Path) -> Option<anyhow::Error> {
    let names = || std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
    let found = |format: &&Format| {
        names().any(|name| by_name(&name.to_string_lossy().to_lowercase()).is_some_and(|f| std::ptr::eq(f, *format)))
    };
    let format = FORMATS.iter().find(found)?;
    let what = format!("`{}` does not hold an ONNX model: it has {}", folder.display(), format.name);
    Some(refusal(what, &format.way, folder))
}

fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.suffixes.iter().any(|suffix| name.ends_with(suffix)))
}

fn refusal(what: String, way: &Way, folder: &Path) -> anyhow::Error {
    let quoted = word(&folder.to_string_lossy());
    let hint = match way {
        Way::Optimum => format!(
            "export it to ONNX, and rewrite that:\n  pip install 'optimum-onnx[onnxruntime]'\n  optimum-cli export onnx --model {quoted} --task \
             text2text-generation exported/\n  lstc rewrite exported/ -o tuned/"
        ),
        Way::Command(command) => format!("convert it to ONNX:\n  {}", command.replace("{}", &quoted)),
        Way::Original => "export the model that it was made from to ONNX: `optimum-cli export onnx --model ID --task \
                          text2text-generation exported/`"
            .to_owned(),
    };
    Hinted::new(anyhow!(what), hint).into()
}
