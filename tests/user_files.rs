//! A user's files: none is lost, none is read by more people than before, and none that changed is taken for what it was.

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cli::{lstc, stderr, stdout, text};

const DATA: &str = "model.onnx.data";

/// A model with a data file, what was made of it, and labelled tokens.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(flags: &[&str]) -> Tuned {
        common::runtime(); // installs the library that the commands need
        let tuned = Tuned { folder: tempfile::tempdir().expect("a temporary folder") };
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/external_weights");
        for file in ["model.onnx", DATA] {
            fs::copy(case.join(file), tuned.path(file)).expect("a copy");
        }
        let row = |n: usize| format!("{{\"input_ids\": [{}, 4, 1], \"labels\": [{}, 1]}}\n", 2 + n % 20, 5 + n % 2);
        fs::write(tuned.path("data.jsonl"), (0..24).map(row).collect::<String>()).expect("it can be written");
        done(&tuned.rewrite("tuned", flags));
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rewrite(&self, output: &str, flags: &[&str]) -> Output {
        let (model, output) = (self.path("model.onnx"), self.path(output));
        lstc(&[&["rewrite", text(&model), "-o", text(&output), "-r", "4"], flags].concat())
    }

    /// A command on the directory, by its first word, with what it cannot do without.
    fn command(&self, words: &[&str]) -> Output {
        let [directory, data, side, exported] =
            ["tuned", "data.jsonl", "tuned/side.safetensors", "out.onnx"].map(|name| self.path(name));
        let more = match words[0] {
            "train" => vec!["--train", text(&data), "--epochs", "1"],
            "eval" => vec!["--data", text(&data), "--side", text(&side), "--no-generation"],
            "export" => vec!["--side", text(&side), "-o", text(&exported)],
            "import" => vec!["--side", text(&side)],
            _ => vec![],
        };
        lstc(&[&words[..1], &[text(&directory)], &more, &words[1..]].concat())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Turns a bit in the middle of a file, in place.
    fn turn_a_bit(&self, name: &str) {
        let mut bytes = self.read(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(self.path(name), bytes).expect("it can be written");
    }

    /// The names in a folder that are temporary.
    fn left(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder").flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with(".lstc-")).collect()
    }
}

fn done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(output), stderr(output));
}

fn refused(output: &Output, with: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{}{said}", stdout(output));
    for part in with {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

const COMMANDS: [&[&str]; 5] = [&["train"], &["eval"], &["export", "--no-check"], &["inspect"], &["import"]];

#[test]
fn a_file_that_changed_since_the_rewrite_stops_every_command() {
    for changed in ["tuned/backbone.data", "tuned/infer.onnx"] {
        let tuned = Tuned::new(&[]);
        tuned.turn_a_bit(changed);
        for command in COMMANDS {
            refused(&tuned.command(command), &[changed, "has changed since the rewrite", "rewrite the model"]);
        }
        assert!(!tuned.path("out.onnx").exists() && !tuned.path("tuned/run").exists());
        let verdict = tuned.command(&["verify"]);
        assert_eq!(verdict.status.code(), Some(1), "{}{}", stdout(&verdict), stderr(&verdict));
        assert!(stdout(&verdict).contains("has changed since the rewrite"), "{}", stdout(&verdict));
        tuned.turn_a_bit(changed);
        done(&tuned.command(&["eval"]));
    }
}

#[test]
fn a_change_is_found_whatever_the_times_say() {
    let tuned = Tuned::new(&[]);
    let data = tuned.path("tuned/backbone.data");
    let modified = fs::metadata(&data).and_then(|m| m.modified()).expect("a time");
    tuned.turn_a_bit("tuned/backbone.data");
    fs::File::options().write(true).open(&data).and_then(|f| f.set_modified(modified)).expect("it is ours");
    refused(&tuned.command(&["eval"]), &["has changed since the rewrite"]);
    fs::remove_file(&data).expect("it was there");
    refused(&tuned.command(&["eval"]), &["backbone.data` is missing"]);
}

#[test]
fn a_linked_source_that_is_overwritten_is_named_as_the_cause() {
    let tuned = Tuned::new(&["--link"]);
    done(&tuned.command(&["train"]));
    // In place, as `cp` does it.
    tuned.turn_a_bit(DATA);
    let resumed = lstc(&["train", text(&tuned.path("tuned")), "--resume"]);
    refused(&resumed, &["backbone.data` has changed since the rewrite", "it is a hard link"]);

    // A copy has nothing to do with its source any more.
    let tuned = Tuned::new(&[]);
    tuned.turn_a_bit(DATA);
    done(&tuned.command(&["eval"]));
}

#[test]
fn a_copy_of_a_directory_is_read_and_one_without_a_record_is_not() {
    let tuned = Tuned::new(&[]);
    let copy = tuned.path("copy");
    fs::create_dir(&copy).expect("a folder");
    for entry in fs::read_dir(tuned.path("tuned")).expect("a folder").flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copy");
    }
    done(&lstc(&["inspect", text(&copy)]));
    // It was hashed once, and what was seen is of the copy.
    assert_ne!(tuned.read("copy/.seen.json"), tuned.read("tuned/.seen.json"));
    tuned.turn_a_bit("copy/backbone.data");
    refused(&lstc(&["inspect", text(&copy)]), &["has changed since the rewrite"]);

    let manifest = String::from_utf8(tuned.read("copy/lst.yaml")).expect("text");
    let (before, files) = manifest.split_once("\nfiles:\n").expect("the files are recorded");
    let after = files.find("\ngraphs:\n").map(|at| &files[at..]).expect("the graphs follow");
    fs::write(copy.join("lst.yaml"), format!("{before}{after}")).expect("it can be written");
    let words = ["does not record train.onnx as it was written", "hint: rewrite the model again"];
    refused(&lstc(&["inspect", text(&copy)]), &words);
}

#[test]
fn a_file_that_a_user_names_is_replaced_only_when_asked() {
    let tuned = Tuned::new(&[]);
    let predictions =
        |path: &Path, flags: &[&str]| tuned.command(&[&["eval", "--predictions", text(path)], flags].concat());
    let out = tuned.path("out.jsonl");
    done(&predictions(&out, &[]));
    let written = tuned.read("out.jsonl");
    assert_eq!(written.iter().filter(|b| **b == b'\n').count(), 24);
    fs::write(&out, "a thesis").expect("it can be written");
    refused(&predictions(&out, &[]), &["out.jsonl` already exists", "hint: --force replaces it"]);
    assert_eq!(tuned.read("out.jsonl"), b"a thesis");
    done(&predictions(&out, &["--force"]));
    assert_eq!(tuned.read("out.jsonl"), written);

    // Two commands with the same rules.
    let [start, emit] = ["start.safetensors", "emit"].map(|name| tuned.path(name));
    done(&tuned.command(&["import", "-o", text(&start)]));
    refused(&tuned.command(&["import", "-o", text(&start)]), &["already exists"]);
    done(&tuned.command(&["import", "-o", text(&start), "--force"]));
    let emitted = |flags: &[&str]| {
        let model = tuned.path("model.onnx");
        lstc(&[&["rewrite", text(&model), "--stop-after", "tap", "--emit", text(&emit)], flags].concat())
    };
    done(&emitted(&[]));
    refused(&emitted(&[]), &["emit/1-", "already exists"]);
    done(&emitted(&["--force"]));
}

#[test]
fn what_a_command_reads_or_lstc_wrote_is_never_replaced() {
    let tuned = Tuned::new(&[]);
    done(&tuned.command(&["train"]));
    done(&tuned.command(&["train", "--out", text(&tuned.path("other-run")), "--cache", text(&tuned.path("taps"))]));
    done(&tuned.rewrite("other", &[]));
    fs::hard_link(tuned.path("data.jsonl"), tuned.path("same.jsonl")).expect("a link");
    symlink(tuned.path("fresh.jsonl"), tuned.path("link.jsonl")).expect("a link");
    fs::create_dir(tuned.path("folder")).expect("a folder");
    assert!(Command::new("mkfifo").arg(tuned.path("pipe")).status().expect("mkfifo runs").success());
    for (output, reason) in [
        ("data.jsonl", "a file that this command reads"),
        ("same.jsonl", "a file that this command reads"),
        ("folder/../data.jsonl", "a file that this command reads"),
        ("link.jsonl", "a symbolic link, not a regular file"),
        ("folder", "a folder, not a regular file"),
        ("pipe", "a named pipe, not a regular file"),
        ("tuned/lst.yaml", "belongs to the rewritten model"),
        ("other/backbone.data", "belongs to the rewritten model"),
        ("other-run/best.safetensors", "belongs to the run"),
        ("taps/cache.yaml", "belongs to the cache"),
    ] {
        let path = tuned.path(output);
        let before = path.is_file().then(|| tuned.read(output));
        let words = ["eval", "--predictions", text(&path), "--force"];
        refused(&tuned.command(&words), &[reason, "will not be replaced"]);
        let [directory, data, side] = ["tuned", "data.jsonl", "tuned/side.safetensors"].map(|name| tuned.path(name));
        let predict = ["predict", text(&directory), "--data", text(&data), "--side", text(&side)];
        refused(&lstc(&[&predict[..], &["-o", text(&path), "--force"]].concat()), &[reason, "will not be replaced"]);
        assert!(path.is_file().then(|| tuned.read(output)) == before, "{output}");
    }
    assert!(!tuned.path("fresh.jsonl").exists());
    for output in ["tuned/lst.yaml", "other/train.onnx", "other-run/checkpoint.safetensors", "taps/000001.index"] {
        let before = tuned.read(output);
        let imported = tuned.command(&["import", "-o", text(&tuned.path(output)), "--force"]);
        refused(&imported, &["belongs to the", "will not be replaced"]);
        assert!(tuned.read(output) == before, "{output}");
    }
    let full = tuned.command(&["eval", "--predictions", "/dev/full", "--force"]);
    refused(&full, &["`/dev/full` is a device, not a regular file"]);
    let zero = fs::metadata("/dev/full").expect("it is there");
    assert!(!zero.is_file());
}

#[test]
fn streams_are_written_to() {
    let tuned = Tuned::new(&[]);
    let run = |script: &str| {
        let eval = format!(
            "{} eval {} --data {} --side {} --no-generation --predictions",
            env!("CARGO_BIN_EXE_lstc"),
            text(&tuned.path("tuned")),
            text(&tuned.path("data.jsonl")),
            text(&tuned.path("tuned/side.safetensors"))
        );
        let script = script.replace("EVAL", &eval).replace("OUT", text(&tuned.path("out")));
        let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
        done(&output);
        output
    };
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("{\"row\":")).count();
    assert_eq!(rows(&stdout(&run("EVAL /dev/stdout"))), 24);
    assert_eq!(rows(&stderr(&run("EVAL /dev/stderr"))), 24);
    assert_eq!(rows(&stdout(&run("EVAL /dev/null"))), 0);
    assert_eq!(rows(&stdout(&run("EVAL /dev/fd/3 3>&1 >/dev/null"))), 24);
    assert_eq!(rows(&stdout(&run("{ EVAL >(cat >&3); sleep 0.2; } 3>&1 >/dev/null"))), 24);
    // A file that stdout goes to keeps what stands there before and behind.
    run("(echo before; EVAL /dev/stdout; echo behind) > OUT");
    let whole = String::from_utf8(tuned.read("out")).expect("text");
    assert!(whole.starts_with("before\n{\"row\":") && whole.ends_with("behind\n"), "{whole}");
    assert_eq!(rows(&whole), 24);
    assert!(fs::symlink_metadata("/dev/stdout").is_ok_and(|m| m.is_symlink()) && !Path::new("/dev/null").is_file());
}

#[test]
fn what_no_rewrite_wrote_is_never_deleted() {
    let tuned = Tuned::new(&[]);
    // What is empty, and what a run left that came to nothing, is in nobody's way.
    fs::create_dir_all(tuned.path("tuned/run/.lstc-1-dead/half")).expect("a folder");
    fs::create_dir_all(tuned.path("tuned/empty")).expect("a folder");
    done(&tuned.rewrite("tuned", &["--force"]));
    assert!(!tuned.path("tuned/empty").exists());

    done(&tuned.command(&["train", "--out", text(&tuned.path("tuned/run-2"))]));
    refused(
        &tuned.rewrite("tuned", &["--force"]),
        &["holds files that `lstc rewrite` did not write", "`run-2`, a training run", "move them"],
    );
    assert!(tuned.path("tuned/run-2/best.safetensors").exists());
    fs::rename(tuned.path("tuned/run-2"), tuned.path("run-2")).expect("it is moved");
    for foreign in
        ["notes.txt", "deep/er/thesis.tex", "taps/000001.taps", "tuned.onnx", "train.yaml", "runs/train.yaml"]
    {
        let path = tuned.path("tuned").join(foreign);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, "mine").expect("it can be written");
        refused(
            &tuned.rewrite("tuned", &["--force"]),
            &["holds files that `lstc rewrite` did not write", &format!("`{foreign}`")],
        );
        assert_eq!(fs::read(&path).expect("it is there"), b"mine");
        fs::remove_file(&path).expect("it is there");
    }
    done(&tuned.rewrite("tuned", &["--force"]));
}

#[test]
fn what_was_changed_since_a_rewrite_is_never_deleted() {
    let tuned = Tuned::new(&[]);
    let again = || tuned.rewrite("tuned", &["--force"]);
    let mine = |name: &str, bytes: &[u8], told: &str| {
        let path = tuned.path("tuned").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, bytes).expect("it can be written");
        refused(&again(), &["holds files that `lstc rewrite` did not write", told]);
        assert_eq!(fs::read(&path).expect("it is there"), bytes);
    };
    for name in ["backbone.7.data", "tokenizer.json", ".lstc-1-mine/thesis.tex"] {
        mine(name, b"mine", &format!("`{name}`"));
        fs::remove_file(tuned.path("tuned").join(name)).expect("it is there");
    }
    for name in ["lst.yaml", "side.safetensors", "train.onnx", "backbone.data"] {
        let written = tuned.read(&format!("tuned/{name}"));
        mine(name, &[&written[..], b"\n"].concat(), &format!("`{name}`, which has changed since the rewrite"));
        fs::write(tuned.path("tuned").join(name), written).expect("it can be written");
    }
    done(&again());
    done(&tuned.command(&["train", "--out", text(&tuned.path("run"))]));
    let [directory, best] = ["tuned", "run/best.safetensors"].map(|name| tuned.path(name));
    done(&lstc(&["import", text(&directory), "--side", text(&best)]));
    refused(&again(), &["`side.safetensors`, which has changed since the rewrite"]);
    assert!(tuned.read("tuned/side.safetensors").len() > 100);
}

#[test]
fn outputs_by_descriptor_and_listings_replace_nothing_that_is_read() {
    let tuned = Tuned::new(&[]);
    let [directory, data, side, model] =
        ["tuned", "data.jsonl", "tuned/side.safetensors", "model.onnx"].map(|name| tuned.path(name));
    for kept in ["data.jsonl", "tuned/lst.yaml", "tuned/side.safetensors"] {
        let before = tuned.read(kept);
        for descriptor in ["/dev/fd/9", "/proc/self/fd/9", "/dev/stdout"] {
            let script = format!(
                "{} predict {} --data {} --side {} -o {descriptor} 9>>{kept} >>{kept}",
                env!("CARGO_BIN_EXE_lstc"),
                text(&directory),
                text(&data),
                text(&side),
                kept = text(&tuned.path(kept)),
            );
            let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
            refused(&output, &[descriptor, "a file that this command reads"]);
            assert!(tuned.read(kept) == before, "{kept}");
        }
    }

    let emit = tuned.path("emit");
    fs::create_dir(&emit).expect("a folder");
    let listing = lstc_passes::ladder_side_tuning().names()[0];
    let config = emit.join(format!("1-{listing}.txt"));
    fs::write(&config, "method: {reduction: 4}\n").expect("a file");
    let emitted = |emit: &Path, flags: &[&str]| {
        let rewrite = ["rewrite", text(&model), "--stop-after", "tap", "--emit", text(emit), "--force"];
        lstc(&[&rewrite, flags].concat())
    };
    refused(&emitted(&emit, &["--config", text(&config)]), &["a file that this command reads"]);
    assert_eq!(fs::read(&config).expect("it is there"), b"method: {reduction: 4}\n");
    let new = tuned.path("new/folder");
    refused(&emitted(&new, &["-r", "999"]), &["reduction"]);
    assert!(!tuned.path("new").exists());
}

#[test]
fn what_is_made_of_private_files_is_private() {
    let tuned = Tuned::new(&[]);
    let private = |name: &str| fs::set_permissions(tuned.path(name), fs::Permissions::from_mode(0o600));
    let [taps, run, out, answers] = ["taps", "run", "start.safetensors", "out.csv"].map(|name| tuned.path(name));
    private("data.jsonl").expect("it is ours");
    done(&tuned.command(&["train", "--out", text(&run), "--cache", text(&taps)]));
    let [directory, data] = ["tuned", "data.jsonl"].map(|name| tuned.path(name));
    let side = ["--side", text(&run)];
    done(&lstc(&[&["predict", text(&directory), "--data", text(&data), "-o", text(&answers)], &side[..]].concat()));
    fs::copy(run.join("best.safetensors"), tuned.path("mine.safetensors")).expect("a copy");
    private("mine.safetensors").expect("it is ours");
    let mine = tuned.path("mine.safetensors");
    done(&lstc(&["import", text(&directory), "--side", text(&mine), "-o", text(&out)]));
    done(&lstc(&["import", text(&directory), "--side", text(&mine)]));
    let files = [answers, out, tuned.path("tuned/side.safetensors")];
    for file in files.into_iter().chain([taps, run].iter().flat_map(|folder| files_in(folder))) {
        let mode = fs::metadata(&file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", file.display());
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_link_to_nowhere_is_not_an_absent_file() {
    for name in ["config.json", "generation_config.json", "tokenizer.json"] {
        let tuned = Tuned::new(&[]);
        symlink("nowhere", tuned.path(name)).expect("a link");
        refused(&tuned.rewrite("again", &[]), &[name, "No such file"]);
        fs::remove_file(tuned.path(name)).expect("it is there");
        assert!(Command::new("mkfifo").arg(tuned.path(name)).status().expect("mkfifo runs").success());
        refused(&tuned.rewrite("again", &[]), &[name, "not a regular file"]);
    }
}

#[test]
fn a_run_that_cannot_begin_leaves_nothing_and_deletes_nothing() {
    let tuned = Tuned::new(&[]);
    let train = |out: &str, data: &str| {
        let [directory, out, data] = ["tuned", out, data].map(|name| tuned.path(name));
        lstc(&["train", text(&directory), "--out", text(&out), "--train", text(&data), "--epochs", "1"])
    };
    refused(&train("tuned/run", "gone.jsonl"), &["gone.jsonl"]);
    refused(&train("a/b/c", "gone.jsonl"), &["gone.jsonl"]);
    assert!(!tuned.path("tuned/run").exists() && !tuned.path("a").exists());
    fs::create_dir(tuned.path("mine")).expect("a folder");
    refused(&train("mine", "gone.jsonl"), &["gone.jsonl"]);
    assert!(tuned.path("mine").exists(), "it was there before");
    for name in ["best.safetensors", "metrics.jsonl", "train.yaml"] {
        fs::write(tuned.path("mine").join(name), "mine").expect("it can be written");
        refused(&train("mine", "data.jsonl"), &["a new run would replace", name, "--out DIR"]);
        assert_eq!(fs::read(tuned.path("mine").join(name)).expect("it is there"), b"mine");
        fs::remove_file(tuned.path("mine").join(name)).expect("it is there");
    }
    done(&train("mine", "data.jsonl"));
}

/// The permissions of all files in a folder, and of the folder.
fn modes(folder: &Path) -> Vec<(String, u32)> {
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut modes: Vec<(String, u32)> =
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), mode(&e.path()))).collect();
    modes.push((".".to_owned(), mode(folder)));
    modes
}

#[test]
fn permissions_are_what_the_mask_and_the_source_leave() {
    let tuned = Tuned::new(&[]);
    let shell = |mask: &str, out: &str| {
        let script = format!(
            "umask {mask}; cd {}; set -e; L={}; $L rewrite model.onnx -o {out}/tuned -r 4 >/dev/null
             $L train {out}/tuned --train data.jsonl --eval data.jsonl --epochs 1 --cache {out}/taps >/dev/null 2>&1
             $L export {out}/tuned -o {out}/files/out.onnx --external-data --no-check >/dev/null
             $L eval {out}/tuned --data data.jsonl --no-generation --predictions {out}/files/out.jsonl >/dev/null
             $L import {out}/tuned --side {out}/tuned/side.safetensors -o {out}/files/start.safetensors >/dev/null",
            text(tuned.folder.path()),
            env!("CARGO_BIN_EXE_lstc")
        );
        done(&Command::new("bash").args(["-c", &script]).output().expect("bash runs"));
        ["tuned", "tuned/run", "taps", "files"].map(|name| modes(&tuned.path(out).join(name)))
    };
    let check = |found: [Vec<(String, u32)>; 4], file: u32, folder: u32| {
        for (name, mode) in found.into_iter().flatten() {
            assert_eq!(mode, if name == "." || name == "run" { folder } else { file }, "{name}: {mode:o}");
        }
    };
    check(shell("022", "a"), 0o644, 0o755);
    check(shell("077", "b"), 0o600, 0o700);
    check(shell("027", "c"), 0o640, 0o750);

    // What is made of a file that others may not read is not for them either.
    fs::set_permissions(tuned.path("model.onnx"), fs::Permissions::from_mode(0o600)).expect("it is ours");
    fs::set_permissions(tuned.path(DATA), fs::Permissions::from_mode(0o640)).expect("it is ours");
    done(&tuned.rewrite("narrow", &[]));
    let wide = modes(&tuned.path("narrow")).into_iter().filter(|(name, mode)| name != "." && mode & 0o177 != 0);
    let wide: Vec<_> = wide.filter(|(name, _)| name != ".seen.json").collect();
    assert!(wide.is_empty(), "{wide:?}");
    let [narrow, side, out] = ["narrow", "narrow/side.safetensors", "narrow.onnx"].map(|name| tuned.path(name));
    done(&lstc(&["export", text(&narrow), "--side", text(&side), "-o", text(&out), "--no-check"]));
    assert_eq!(fs::metadata(out).expect("it is there").permissions().mode() & 0o777, 0o600);
}

/// Starts a command, waits until a temporary folder of it is in `watched`, and sends a signal; how it ended.
fn signalled(tuned: &Tuned, arguments: &[&str], watched: &str, signal: &str) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
    command.args(arguments).env("TMPDIR", tuned.path("tmp")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child: Child = command.spawn().expect("lstc runs");
    let begun = Instant::now();
    while tuned.left(watched).is_empty() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it could be stopped: {arguments:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{arguments:?} does not get on");
        sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    child.wait().expect("a child").code()
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let tuned = Tuned::new(&[]);
    fs::create_dir(tuned.path("tmp")).expect("a folder");
    let [model, directory, side, out, again] =
        ["model.onnx", "tuned", "tuned/side.safetensors", "out.onnx", "deep/er/again"].map(|name| tuned.path(name));
    let rewrite = ["rewrite", text(&model), "-o", text(&again), "--backbone", "int8"];
    let export = ["export", text(&directory), "--side", text(&side), "-o", text(&out)];
    let verify = ["verify", text(&directory)];
    let bench = ["bench", text(&model), "--only", "step", "--runs", "1000"];
    fs::create_dir_all(tuned.path("deep/er")).expect("a folder");
    for (arguments, watched) in [(&rewrite[..], "deep/er"), (&export, "."), (&verify, "tmp"), (&bench, "tmp")] {
        for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
            assert_eq!(signalled(&tuned, arguments, watched, signal), Some(code), "{arguments:?} {signal}");
            for folder in [".", "tmp", "deep/er"] {
                assert!(tuned.left(folder).is_empty(), "{arguments:?} {signal}: {:?}", tuned.left(folder));
            }
        }
    }
    assert!(!out.exists() && !again.exists());
}

#[test]
fn what_a_kill_leaves_is_swept_by_a_later_command() {
    let tuned = Tuned::new(&[]);
    fs::create_dir(tuned.path("tmp")).expect("a folder");
    let directory = tuned.path("tuned");
    assert_eq!(signalled(&tuned, &["verify", text(&directory)], "tmp", "-KILL"), None);
    assert_eq!(tuned.left("tmp").len(), 1);
    // A process that lives keeps what is its own.
    let live = tuned.path("tmp/.lstc-1-live");
    fs::create_dir(&live).expect("a folder");
    let lock = fs::File::open(&live).expect("a folder");
    lock.try_lock().expect("nobody else has it");
    let again = Command::new(env!("CARGO_BIN_EXE_lstc"))
        .args(["verify", text(&directory)])
        .env("TMPDIR", tuned.path("tmp"))
        .output()
        .expect("lstc runs");
    done(&again);
    assert_eq!(tuned.left("tmp"), [".lstc-1-live"]);
}
