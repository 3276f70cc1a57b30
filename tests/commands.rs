//! Whole commands: what they write, print and answer.

#[path = "matrix/archive.rs"]
mod archive;
#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "commands/companions.rs"]
mod companions;
#[path = "commands/folders.rs"]
mod folders;
#[path = "commands/sizes.rs"]
mod sizes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lstc_graph::{DataFiles, encode, load};

use cli::{stderr, stdout, text};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn lstc(arguments: &[&str]) -> Output {
    common::runtime(); // installs the library that verify needs
    cli::lstc(arguments)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {}", stderr(output)))
}

/// A rewritten copy of a case, model and all, in a temporary folder.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(name: &str, flags: &[&str]) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = Tuned { folder };
        for file in fs::read_dir(case(name)).expect("the case is committed") {
            let path = file.expect("a readable folder").path();
            fs::copy(&path, tuned.path(path.file_name().and_then(|n| n.to_str()).expect("a name"))).expect("a copy");
        }
        let (model, output) = (tuned.path("model.onnx"), tuned.path("tuned"));
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&output)], flags].concat());
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn verify(&self) -> Output {
        lstc(&["verify", text(&self.path("tuned"))])
    }
}

#[test]
fn rewrite_writes_what_the_manifest_reproduces() {
    let tuned = Tuned::new("gated_dynamo", &["-r", "4", "--decoder-blocks", "1", "--gate", "fixed", "--alpha=-0.02"]);
    let again = tuned.path("again");
    let (model, quiet) = (tuned.path("model.onnx"), tuned.path("quiet"));
    assert_eq!(stderr(&lstc(&["rewrite", text(&model), "-o", text(&quiet)])), "", "a sound model gives no warnings");
    let done = lstc(&["rewrite", "--config", text(&tuned.path("tuned/lst.yaml")), "-o", text(&again)]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    for file in [
        "train.onnx",
        "grad.onnx",
        "apply.onnx",
        "eval.onnx",
        "infer.onnx",
        "backbone.data",
        "side.safetensors",
        "lst.yaml",
    ] {
        let read = |folder: &str| fs::read(tuned.path(folder).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(read("tuned") == read("again"), "{file} differs");
    }
    let left: Vec<_> = fs::read_dir(tuned.folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "left behind: {left:?}");
}

#[test]
fn an_output_is_replaced_only_when_asked_and_only_if_it_is_a_rewrite() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    let (model, output) = (tuned.path("model.onnx"), tuned.path("tuned"));
    let no = lstc(&["rewrite", text(&model), "-o", text(&output)]);
    assert_eq!((code(&no), stderr(&no).contains("already exists") && stderr(&no).contains("--force")), (2, true));
    let yes = lstc(&["rewrite", text(&model), "-o", text(&output), "--force", "--init", "random"]);
    assert_eq!(code(&yes), 0, "{}", stderr(&yes));
    let precious = tuned.path("precious");
    fs::create_dir(&precious).and_then(|()| fs::write(precious.join("thesis.txt"), "all of it")).expect("a folder");
    let never = lstc(&["rewrite", text(&model), "-o", text(&precious), "--force"]);
    assert_eq!(code(&never), 2);
    assert!(stderr(&never).contains("will not be replaced"), "{}", stderr(&never));
    assert!(precious.join("thesis.txt").exists());
    // A rewrite with the model inside.
    fs::copy(&model, output.join("model.onnx")).expect("a copy");
    let inside = lstc(&["rewrite", text(&output.join("model.onnx")), "-o", text(&output), "--force"]);
    assert_eq!(code(&inside), 2);
    assert!(stderr(&inside).contains("`model.onnx`"), "{}", stderr(&inside));
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    let model = tuned.path("model.onnx");
    let target = tuned.path("full");
    // A file-size limit stands for a full disk: writes fail in the middle.
    let script = format!(
        "trap '' XFSZ; ulimit -f 200; exec {} rewrite {} -o {}",
        env!("CARGO_BIN_EXE_lstc"),
        text(&model),
        text(&target)
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    let talk = stderr(&output);
    assert!(talk.contains("cannot write") && talk.contains("full") && talk.contains("Caused by"), "{talk}");
    assert!(!target.exists());
    let left: Vec<_> = fs::read_dir(tuned.folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "left behind: {left:?}");
}

#[test]
fn a_refusal_names_nodes_and_answers_one() {
    let model = case("refused/unknown_activation.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let no = lstc(&["rewrite", text(&model), "-o", text(&folder.path().join("x"))]);
    assert_eq!(code(&no), 1);
    let talk = stderr(&no);
    assert_eq!(talk.matches("computes Elu").count(), 2, "{talk}");
    assert!(talk.starts_with("error: cannot rewrite"), "{talk}");
    let headless = lstc(&["rewrite", text(&case("refused/bert.onnx")), "-o", text(&folder.path().join("x"))]);
    assert_eq!(code(&headless), 1);
    assert!(stderr(&headless).contains("lstc reads encoder-decoder models of the T5 family"), "{}", stderr(&headless));
    let look = lstc(&["inspect", text(&model)]);
    assert_eq!(code(&look), 1);
    assert!(stdout(&look).contains("computes Elu"), "{}", stdout(&look));
}

#[test]
fn options_that_do_not_fit_are_told_at_once() {
    let model = case("relu_torchscript/model.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("x");
    let no = lstc(&[
        "rewrite",
        text(&model),
        "-o",
        text(&output),
        "-r",
        "1000",
        "--encoder-blocks",
        "1,7",
        "--dropout",
        "1.5",
    ]);
    assert_eq!(code(&no), 2);
    let talk = stderr(&no);
    for words in ["method.reduction is 1000, which leaves nothing", "block 7 cannot be kept", "method.dropout is 1.5"] {
        assert!(talk.contains(words), "{words}:\n{talk}");
    }
    assert!(!output.exists());
}

#[test]
fn a_configuration_is_printed_and_read_back() {
    let printed = lstc(&["rewrite", "--print-config", "--gate", "none", "--encoder-blocks", "0"]);
    assert_eq!(code(&printed), 0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("lst.yaml");
    fs::write(&file, &printed.stdout).expect("a file");
    let again = lstc(&["rewrite", "--config", text(&file), "--print-config"]);
    assert_eq!(stdout(&printed), stdout(&again));
    let keys = ["reduction", "blocks", "gate", "temperature", "alpha", "merge_last", "bias", "dropout", "init", "seed"];
    for key in keys.into_iter().chain(["label", "distill", "beta1", "beta2", "epsilon", "weight_decay", "clip"]) {
        let line = stdout(&printed).lines().find(|l| l.trim_start().starts_with(key)).map(str::to_owned);
        assert!(line.as_ref().is_some_and(|l| l.contains('#')), "{key} has no comment: {line:?}");
    }
    fs::write(&file, "method:\n  reductoin: 4\n").expect("a file");
    let mistake = lstc(&["rewrite", "--config", text(&file), "--print-config"]);
    assert_eq!(code(&mistake), 2);
    assert!(stderr(&mistake).contains("reductoin"), "{}", stderr(&mistake));
}

#[test]
fn a_switch_takes_a_value_with_or_without_a_blank() {
    let printed = |flags: &[&str]| {
        let done = lstc(&[&["rewrite", "--print-config"], flags].concat());
        assert_eq!(code(&done), 0, "{flags:?}: {}", stderr(&done));
        stdout(&done)
    };
    let line = |text: &str, key: &str| text.lines().find(|l| l.contains(key)).map(str::to_owned).unwrap_or_default();
    for flags in [&["--bias", "false"][..], &["--bias=false"], &["--no-bias"], &["--bias", "Off"]] {
        assert!(line(&printed(flags), "  bias:").contains("bias: false"), "{flags:?}");
    }
    for flags in
        [&["--merge-last", "true"][..], &["--merge-last"], &["--merge-last=yes"], &["--no-merge-last", "false"]]
    {
        assert!(line(&printed(flags), "  merge_last:").contains("merge_last: true"), "{flags:?}");
    }
    assert!(stdout(&lstc(&["rewrite", "--print-config", "false"])).is_empty(), "it was turned off");
    let wrong = lstc(&["rewrite", "--print-config", "--bias=perhaps"]);
    assert_eq!(code(&wrong), 2);
    assert!(stderr(&wrong).contains("invalid value 'perhaps' for '--bias"), "{}", stderr(&wrong));

    // A model behind a switch is a model, and a value is none.
    let tuned = Tuned::new("relu_torchscript", &["--recompute-attention", "true"]);
    let (model, output) = (tuned.path("model.onnx"), tuned.path("other"));
    let done = lstc(&["rewrite", "--merge-last", text(&model), "--no-bias", "-o", text(&output), "--force", "false"]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let manifest = fs::read_to_string(output.join("lst.yaml")).expect("a manifest");
    assert!(manifest.contains("merge_last: true") && manifest.contains("bias: false"), "{manifest}");
}

#[test]
fn a_negative_number_is_out_of_range() {
    for (arguments, told) in [
        (
            &["train", "d", "--epochs", "-1"][..],
            "invalid value '-1' for '--epochs <N>': out of range: it must be at least 1",
        ),
        (&["train", "d", "--batch-size", "-16"], "must be at least 1"),
        (&["train", "d", "--seed", "-1"], "must be at least 0"),
        (&["train", "d", "--max-source-length=-1"], "must be at least 2"),
        (&["rewrite", "m.onnx", "-r", "-8"], "must be at least 1"),
        (&["rewrite", "m.onnx", "--encoder-blocks", "-1,2"], "must be at least 0"),
        (&["rewrite", "m.onnx", "--keep-blocks", "-3"], "must be at least 1"),
        (&["inspect", "m.onnx", "--batch", "-2"], "must be at least 1"),
        (&["eval", "d", "--threads", "0"], "must be at least 1"),
        (&["verify", "d", "--seed", "-5"], "must be at least 0"),
        (&["rewrite", "m.onnx", "-o", "x", "--dropout", "-0.5"], "m.onnx"),
        (&["train", "d", "--epochs", "1e3"], "not a whole number"),
        (&["train", "d", "--epochs", "99999999999999999999"], "too large"),
    ] {
        let no = lstc(arguments);
        assert_eq!(code(&no), 2, "{arguments:?}");
        assert!(stderr(&no).contains(told), "{arguments:?}: {}", stderr(&no));
        assert!(!stderr(&no).contains("unexpected argument"), "{arguments:?}: {}", stderr(&no));
    }
}

#[test]
fn passes_can_be_looked_into() {
    let model = case("relu_torchscript/model.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let emit = folder.path().join("emit");
    let done = lstc(&[
        "rewrite",
        text(&model),
        "--stop-after",
        "ladder",
        "--emit",
        text(&emit),
        "--timings",
        "--init",
        "random",
    ]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let mut names: Vec<String> = fs::read_dir(&emit)
        .expect("a folder")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["1-freeze.txt", "2-fold.txt", "3-tap.txt", "4-prune.txt", "5-side-stack.txt", "6-ladder.txt"]);
    let ladder = fs::read_to_string(emit.join("6-ladder.txt")).expect("a listing");
    assert!(ladder.contains("# ladder") && ladder.contains("encoder.side_block.0.layer.0"), "{ladder}");
    assert!(stderr(&done).contains("side-stack") && stderr(&done).contains(" ms"), "{}", stderr(&done));
    let wrong = lstc(&["rewrite", text(&model), "--stop-after", "laddre"]);
    assert!(stderr(&wrong).contains("the passes are freeze, fold, tap, prune"), "{}", stderr(&wrong));
}

#[test]
fn inspect_tells_a_model_and_a_rewrite() {
    let tuned = Tuned::new("two_and_three_blocks", &["-r", "2"]);
    let json = |output: &Output| serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON");
    let model = json(&lstc(&["inspect", text(&tuned.path("model.onnx")), "--format", "json"]));
    assert_eq!(model["model"]["towers"][0]["blocks"], 2);
    assert_eq!(model["model"]["towers"][1]["blocks"], 3);
    assert_eq!(model["taps"].as_array().map(Vec::len), Some(7));
    let kept = |way: &str| model["memory"][way]["activations"].as_u64().expect("a number");
    assert!(kept("lst") < kept("full"));
    let rewritten = json(&lstc(&["inspect", text(&tuned.path("tuned")), "--format", "json"]));
    assert_eq!(rewritten["graphs"].as_array().map(Vec::len), Some(5));
    let cut = rewritten["cut"].as_array().expect("a list");
    assert!(cut.len() > 7);
    let role = |name: &str| cut.iter().find(|c| c["value"]["name"] == name).map(|c| c["role"].clone());
    assert_eq!(role("model.shared.weight").or(role("model.lm_head.weight")), Some("LM head".into()), "{cut:?}");
    let told = stdout(&lstc(&["inspect", text(&tuned.path("tuned"))]));
    assert!(told.lines().count() > 20 && told.lines().all(|line| !line.ends_with(' ')), "{told}");
    let dot = lstc(&["inspect", text(&tuned.path("model.onnx")), "--format", "dot"]);
    assert!(stdout(&dot).starts_with("digraph"));
    // More than there are bytes to count is no fault of the model.
    let most = u32::MAX.to_string();
    let sizes = ["--batch", &most, "--source-length", &most, "--target-length", &most];
    for format in ["text", "json", "html"] {
        let done = lstc(&[&["inspect", text(&tuned.path("model.onnx")), "--format", format][..], &sizes].concat());
        assert_eq!((code(&done), stderr(&done).as_str()), (0, ""), "{format}");
    }
}

#[test]
fn a_model_of_another_family_is_described() {
    let other = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/likeness/{name}.onnx")).to_string_lossy().into_owned()
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("tuned");
    let read = "lstc reads encoder-decoder models of the T5 family";
    for (name, looks, input) in [
        ("vit", "looks like a vision encoder that cuts pictures", "`pixel_values`: pictures"),
        ("whisper_dynamo", "looks like a model that turns speech or sound into text", "`input_features`: sound"),
        ("llama", "RMS norm and rotary positions (LLaMA-like)", "`input_ids`: token indices"),
        ("pix2struct", "that takes features, `flattened_patches`", "`flattened_patches`: features"),
        ("t5_embedded", "looks like a T5 that takes embeddings", "`inputs_embeds`: embeddings"),
        (
            "t5_decoder",
            "looks like the decoder of a T5 without its encoder",
            "`encoder_hidden_states`: the output of an",
        ),
        ("t5_step", "a step of a decoder that reads a cache", "`past.1`: a cache"),
    ] {
        let file = other(name);
        let no = lstc(&["rewrite", &file, "-o", text(&out)]);
        let first = stderr(&no).lines().next().unwrap_or_default().to_owned();
        assert_eq!(code(&no), 1, "{}", stderr(&no));
        assert!(first.starts_with("error: cannot rewrite") && first.contains(looks) && first.contains(read), "{first}");
        for arguments in [&["inspect", &file][..], &["inspect", &file, "--why"]] {
            let no = lstc(arguments);
            assert_eq!(code(&no), 1, "{arguments:?}: {}", stderr(&no));
            assert!(stdout(&no).contains(looks) && stdout(&no).contains(input), "{arguments:?}: {}", stdout(&no));
        }
    }
    let pair = lstc(&["rewrite", &other("whisper_encoder"), &other("whisper_decoder"), "-o", text(&out)]);
    assert_eq!(code(&pair), 1, "{}", stderr(&pair));
    assert!(stderr(&pair).contains("looks like an encoder of speech or sound"), "{}", stderr(&pair));
    let labels = lstc(&["rewrite", &other("t5_labels"), "-o", text(&out)]);
    assert!(stderr(&labels).contains("hint: export it with `decoder_input_ids` as an input"), "{}", stderr(&labels));
    let lora = lstc(&["rewrite", &other("t5_lora"), "-o", text(&out)]);
    assert!(stderr(&lora).contains("hint: merge the LoRA before the export"), "{}", stderr(&lora));
    assert!(!out.exists());
}

#[test]
fn inspect_tells_why() {
    let model = case("refused/unknown_activation.onnx");
    let why = |place: &[&str]| lstc(&[&["inspect", text(&model), "--why"], place].concat());
    let all = why(&[]);
    assert_eq!((code(&all), stderr(&all).as_str()), (1, ""));
    for line in [
        "cross-attention       matched: 3 heads of 8, scale 1, bias: a mask\n",
        "activation      no: this is where, at `/model/decoder/block.1/layer.2/DenseReluDense/act/Relu` (Elu)\n",
        "LM head                 matched: [32, 64], stored [in, out], scale 0.176777\n",
    ] {
        assert!(stdout(&all).contains(line), "{}", stdout(&all));
    }
    // What the hint of a refusal says works, and shows the same reason.
    let refused = lstc(&["rewrite", text(&model), "-o", "nowhere"]);
    let hint = format!("hint: `lstc inspect {} --why decoder.1` shows what was matched\n", text(&model));
    assert!(stderr(&refused).ends_with(&hint), "{}", stderr(&refused));
    let looked = lstc(&["inspect", text(&model)]);
    assert!(stderr(&looked).ends_with(&hint), "{}", stderr(&looked));
    let block = stdout(&why(&["decoder.1"]));
    assert!(block.contains("\ndecoder.1\n") && block.contains("computes Elu"), "{block}");
    let numbered = stdout(&why(&["decoder.1.2"]));
    assert_eq!(numbered, stdout(&why(&["decoder.1.feed-forward"])));
    let node = stdout(&why(&["/model/decoder/block.1/layer.2/DenseReluDense/act/Relu"]));
    assert!(node.contains("decoder.1.feed-forward > feed-forward > plain > activation"), "{node}");
    let json = why(&["decoder.1.feed-forward", "--format", "json"]);
    let json = serde_json::from_slice::<serde_json::Value>(&json.stdout).expect("JSON");
    assert_eq!(json["understood"], false);
    assert_eq!(json["answer"]["sublayers"][0]["outcome"]["outcome"], "no");
    let unknown = why(&["decoder.7"]);
    assert_eq!(code(&unknown), 2);
    assert!(stderr(&unknown).contains("`decoder.0` to `decoder.1`"), "{}", stderr(&unknown));
    assert!(stderr(&why(&["DenseReluDense/act"])).contains("layer.2/DenseReluDense/act/Relu`"));
    let page = lstc(&["inspect", text(&model), "--why", "head", "--format", "html"]);
    assert_eq!((code(&page), stderr(&page).contains("--why writes text or JSON")), (2, true));
    let sound = lstc(&["inspect", text(&case("two_and_three_blocks/model.onnx")), "--why", "encoder"]);
    assert_eq!(code(&sound), 0);
    assert!(stdout(&sound).contains("blocks 0 to 1\n"), "{}", stdout(&sound));
}

#[test]
fn verify_holds_on_what_rewrite_writes() {
    for (name, flags) in [
        ("relu_torchscript", &[][..]),
        ("external_weights", &["--encoder-blocks", "2", "--dropout", "0.1", "--merge-last=true"][..]),
        // A rate that is another number of the graph too.
        ("gated_dynamo", &["--dropout", "0.5"][..]),
        ("fixed_gate_static", &["-r", "2", "--init", "magnitude-consistent", "--distill", "0.5"][..]),
    ] {
        let tuned = Tuned::new(name, flags);
        let verdict = tuned.verify();
        println!("{name}\n{}", stdout(&verdict));
        assert_eq!(code(&verdict), 0, "{name}:\n{}{}", stdout(&verdict), stderr(&verdict));
    }
}

/// The check that failed, by name.
fn failed(output: &Output) -> Vec<String> {
    assert_eq!(code(output), 1, "{}{}", stdout(output), stderr(output));
    stdout(output).lines().filter(|l| l.contains("FAILED")).map(str::to_owned).collect()
}

/// Changes one node of a graph on disk.
fn tamper(path: &Path, pass: &str, from: &str, to: &str) {
    let mut graph = load(path).expect("a graph");
    let id = graph
        .node_ids()
        .find(|id| graph.node(*id).op == from && graph.node(*id).origin.name() == pass)
        .unwrap_or_else(|| panic!("no {from} of {pass}"));
    graph.replace_op(id, "", to);
    fs::write(path, encode(&graph, &DataFiles::of(&graph, path.parent().expect("a folder"))))
        .expect("it can be written");
}

#[test]
fn verify_finds_a_wrong_gradient() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    tamper(&tuned.path("tuned/grad.onnx"), "differentiate", "Sub", "Add");
    let failed = failed(&tuned.verify());
    assert!(failed.iter().any(|l| l.contains("gradient of")), "{failed:?}");
}

#[test]
fn verify_finds_a_changed_backbone() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    tamper(&tuned.path("tuned/infer.onnx"), "source", "Relu", "Abs");
    let failed_checks = failed(&tuned.verify());
    assert!(failed_checks.iter().any(|l| l.contains("3. the backbone's nodes")), "{failed_checks:?}");
    assert!(failed_checks.iter().any(|l| l.contains("infer.onnx, optimisation off")), "{failed_checks:?}");

    let tuned = Tuned::new("relu_torchscript", &[]);
    let data = tuned.path("tuned/backbone.data");
    let mut bytes = fs::read(&data).expect("the weights");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4].copy_from_slice(&1.5_f32.to_le_bytes());
    fs::write(&data, bytes).expect("it can be written");
    let failed_checks = failed(&tuned.verify());
    assert!(failed_checks.iter().any(|l| l.contains("3. the backbone's nodes")), "{failed_checks:?}");
}

#[test]
fn verify_finds_a_changed_head_weight() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    let graph = load(&tuned.path("tuned/infer.onnx")).expect("a graph");
    let offset = graph
        .node_ids()
        .map(|id| graph.node(id))
        .filter(|n| n.origin.name() == "head" && n.op == "Gemm")
        .filter_map(|n| graph.weight(n.input(1)?)?.place().map(|place| place.offset))
        .next()
        .expect("the head reads a weight of the data file");
    let data = tuned.path("tuned/backbone.data");
    let mut bytes = fs::read(&data).expect("the weights");
    bytes[offset as usize + 2] ^= 0x40;
    fs::write(&data, bytes).expect("it can be written");
    let failed = failed(&tuned.verify());
    assert!(failed.iter().any(|l| l.contains("the graphs on disk")), "{failed:?}");
}

#[test]
fn verify_finds_a_changed_optimizer_side_network_or_manifest() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    tamper(&tuned.path("tuned/apply.onnx"), "optimizer", "Sub", "Add");
    tamper(&tuned.path("tuned/train.onnx"), "optimizer", "Sqrt", "Abs");
    let both = stdout(&tuned.verify());
    assert!(both.contains("apply.onnx") && both.contains("train.onnx"), "{both}");
    assert!(!failed(&tuned.verify()).is_empty());

    let tuned = Tuned::new("relu_torchscript", &[]);
    fs::remove_file(tuned.path("tuned/side.safetensors")).expect("it was there");
    assert!(failed(&tuned.verify()).iter().any(|l| l.contains("side.safetensors")));

    let tuned = Tuned::new("relu_torchscript", &[]);
    let manifest = tuned.path("tuned/lst.yaml");
    let changed = fs::read_to_string(&manifest).expect("a manifest").replace("beta1: 0.9", "beta1: 0.5");
    fs::write(&manifest, changed).expect("it can be written");
    assert!(failed(&tuned.verify()).iter().any(|l| l.contains("the graphs on disk")));
}

#[test]
fn a_model_behind_links_is_rewritten_as_it_is_named() {
    // The layout of a model hub's cache: names are links to blobs.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (blobs, names) = (folder.path().join("blobs"), folder.path().join("names"));
    for path in [&blobs, &names] {
        fs::create_dir(path).expect("a folder");
    }
    for (file, blob) in [("model.onnx", "aaa"), ("model.onnx.data", "bbb")] {
        fs::copy(case("external_weights").join(file), blobs.join(blob)).expect("a copy");
        std::os::unix::fs::symlink(Path::new("../blobs").join(blob), names.join(file)).expect("a link");
    }
    let output = folder.path().join("tuned");
    let done = lstc(&["rewrite", text(&names.join("model.onnx")), "-o", text(&output), "-r", "4"]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    assert!(fs::symlink_metadata(output.join("backbone.data")).expect("the weights").is_file());
    let verdict = lstc(&["verify", text(&output)]);
    assert_eq!(code(&verdict), 0, "{}{}", stdout(&verdict), stderr(&verdict));
}

#[test]
fn verify_finds_a_changed_source() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    let model = tuned.path("model.onnx");
    let mut graph = load(&model).expect("the model");
    graph.name.push('x');
    fs::write(&model, encode(&graph, &DataFiles::default())).expect("it can be written");
    let failed = failed(&tuned.verify());
    assert!(failed.iter().any(|l| l.contains("source is the one")), "{failed:?}");
}

#[test]
fn what_is_no_rewrite_or_no_model_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let empty = lstc(&["verify", text(folder.path())]);
    assert_eq!(code(&empty), 2);
    assert!(stderr(&empty).contains("is not a rewritten model"), "{}", stderr(&empty));
    let directory = lstc(&["inspect", text(folder.path())]);
    assert_eq!(code(&directory), 2);
    assert!(stderr(&directory).contains("does not hold an ONNX model"), "{}", stderr(&directory));
    let absent = lstc(&["rewrite", "nowhere.onnx", "-o", text(&folder.path().join("x"))]);
    assert_eq!(code(&absent), 2);
    assert!(stderr(&absent).contains("nowhere.onnx"), "{}", stderr(&absent));
}

#[test]
fn what_a_killed_rewrite_left_is_swept_by_the_next() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    // A process holds the lock of its folder as long as it lives, whatever its number.
    let [stale, live, other] = [".lstc-1-dead", ".lstc-4194305-live", ".lstc-notes"].map(|name| tuned.path(name));
    for folder in [&stale, &live, &other] {
        fs::create_dir(folder).expect("a folder");
    }
    let lock = fs::File::open(&live).expect("a folder");
    lock.try_lock().expect("nobody else has it");
    let done = lstc(&["rewrite", text(&tuned.path("model.onnx")), "-o", text(&tuned.path("other"))]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    assert!(!stale.exists() && live.exists() && other.exists());
}

#[test]
fn a_rewrite_that_is_killed_leaves_no_directory() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    for delay in [1, 4, 8, 15, 30, 60] {
        let output = tuned.path(&format!("killed-{delay}"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_lstc"))
            .args(["rewrite", text(&tuned.path("model.onnx")), "-o", text(&output)])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("lstc runs");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        // It may be done already.
        let _ = child.kill();
        child.wait().expect("it ends");
        if output.exists() {
            let files = fs::read_dir(&output).expect("a folder").count();
            assert_eq!(files, 9, "half-written after {delay} ms");
        }
    }
}
