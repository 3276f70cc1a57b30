//! ONNX Runtime as lstc installs it, finds it and runs it.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use half::f16;
use lstc_runtime::{Device, Dim, ElementType, Error, Library, Optimisation, Origin, Runtime, Session, Tensor};
use ndarray::{Array, Array1, array};
use serde_json::Value;
use tempfile::TempDir;

const ADD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/add.onnx");
const TYPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/types.onnx");
const SCALE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/scale.onnx");

const WHEEL: &str = if cfg!(target_arch = "aarch64") {
    "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl"
} else {
    "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl"
};
const SHA256: &str = if cfg!(target_arch = "aarch64") {
    "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c"
} else {
    "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d"
};

/// A user with an empty home.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> User {
        User { home: tempfile::tempdir().unwrap() }
    }

    /// `lstc` with these arguments, in an environment that holds no ONNX Runtime library.
    fn lstc(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
        command.args(args).env("XDG_CACHE_HOME", self.home.path()).stdin(Stdio::null());
        for variable in ["ORT_DYLIB_PATH", "ORT_LOG", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        command
    }

    /// As `lstc`, where there is neither Python nor pip.
    fn lstc_alone(&self, args: &[&str]) -> Command {
        let mut command = self.lstc(args);
        command.env("PATH", self.home.path());
        command
    }

    fn install(&self, wheel: &Path) -> Output {
        output(self.lstc_alone(&["runtime", "install", "--wheel"]).arg(wheel))
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("lstc/onnxruntime-1.32.0-cpu")
    }

    fn library(&self) -> PathBuf {
        self.directory().join("libonnxruntime.so.1.32.0")
    }

    /// What lies in the cache directory beside the lock.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.path().join("lstc")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "install.lock").collect()
    }
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn assert_done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}

/// The command failed, saying all of `texts`.
#[track_caller]
fn assert_failed(output: &Output, texts: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    for text in texts {
        assert!(stderr(output).contains(text), "`{text}` is not in\n{}", stderr(output));
    }
}

fn pip() -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip"]);
    pip
}

/// pip's own cache, so that the tests fetch the wheel once.
fn pip_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("pip-cache")
}

/// The pinned wheel, fetched once and kept with the build.
fn wheel() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(WHEEL);
    if !kept.exists() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let platform = WHEEL.trim_end_matches(".whl").rsplit('-').next().unwrap();
        let fetched = output(
            pip()
                .args(["download", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"])
                .args(["--platform", platform, "onnxruntime==1.32.0", "--dest"])
                .arg(fresh.path())
                .env("PIP_CACHE_DIR", pip_cache()),
        );
        assert_done(&fetched);
        fs::rename(fresh.path().join(WHEEL), &kept).unwrap();
    }
    kept
}

/// Fills a file.
type Writer = Box<dyn FnOnce(&mut File)>;

/// A file that is named as the wheel and is not it.
fn impostor(directory: &TempDir, write: impl FnOnce(&mut File)) -> PathBuf {
    let path = directory.path().join(WHEEL);
    write(&mut File::create_new(&path).unwrap());
    path
}

fn flipped(file: &mut File) {
    let mut bytes = fs::read(wheel()).unwrap();
    bytes[5_000_000] ^= 1;
    file.write_all(&bytes).unwrap();
}

fn truncated(file: &mut File) {
    std::io::copy(&mut File::open(wheel()).unwrap().take(10_000_000), file).unwrap();
}

fn no_zip(file: &mut File) {
    file.write_all(b"<html>404</html>").unwrap();
}

/// A zip file with one entry, which holds a few bytes.
fn zip_of(entry: &str) -> impl FnOnce(&mut File) {
    move |file| {
        let mut zip = zip::ZipWriter::new(file);
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(entry, stored).unwrap();
        zip.write_all(b"not a library").unwrap();
        zip.finish().unwrap();
    }
}

mod install {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open_to(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_pip_that_lies_in_the_working_directory_is_not_run() {
        let user = User::new();
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("it ran");
        let planted = format!("open({:?}, 'w').close()\n", mark.to_str().unwrap());
        for name in ["pip.py", "site.py", "sitecustomize.py", "usercustomize.py", "importlib.py", "sys.py"] {
            fs::write(folder.path().join(name), &planted).unwrap();
        }
        let mut install = user.lstc(&["runtime", "install"]);
        install.current_dir(&folder).env("PYTHONPATH", folder.path());
        // pip itself is run, and finds no index.
        install.env("PIP_NO_INDEX", "1");
        assert_failed(&output(&mut install), &["pip cannot download onnxruntime==1.32.0"]);
        output(user.lstc(&["runtime", "show"]).current_dir(&folder));
        assert!(!mark.exists(), "what lies in the working directory was run");
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_not_followed() {
        let user = User::new();
        let (home, outside) = (user.home.path().join("lstc"), user.home.path().join("outside"));
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::symlink(&outside, home.join("install.lock")).unwrap();
        assert_failed(&output(&mut user.lstc(&["runtime", "install"])), &["install.lock", "symbolic link"]);
        assert!(!outside.exists());
    }

    #[test]
    fn a_library_that_is_not_what_was_installed_is_not_loaded() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        let show = || output(&mut user.lstc_alone(&["runtime", "show"]));
        let again = || output(&mut user.lstc_alone(&["runtime", "install"]));
        assert_done(&show());
        assert!(stdout(&again()).starts_with("already installed"));

        // A file with other times is hashed, and is what it was.
        let bytes = fs::read(user.library()).unwrap();
        fs::write(user.library(), &bytes).unwrap();
        assert_done(&show());

        let mut damaged = bytes.clone();
        damaged[20_000_000] ^= 1;
        fs::write(user.library(), &damaged).unwrap();
        let hint = "hint: `lstc runtime install --force`";
        assert_failed(&show(), &["is damaged: it is not what was installed", hint]);
        assert_failed(&again(), &["is damaged: it is not what was installed", hint]);
        let planted = user.directory().join("libonnxruntime.so.9.9.9");
        fs::write(user.library(), &bytes).unwrap();
        fs::write(&planted, &bytes).unwrap();
        assert_failed(&show(), &["libonnxruntime.so.9.9.9` was not installed by lstc", hint]);
        fs::remove_file(&planted).unwrap();
        fs::remove_file(user.directory().join("installed.json")).unwrap();
        assert_failed(&show(), &["installed.json` is missing, so its libraries cannot be checked", hint]);
        assert_done(&user.install(&wheel()));
        assert_done(&show());
        let forced = output(user.lstc_alone(&["runtime", "install", "--force", "--wheel"]).arg(wheel()));
        assert_done(&forced);
        assert_done(&show());
    }

    #[test]
    fn a_library_that_others_can_write_to_is_not_loaded() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        let show = || output(&mut user.lstc_alone(&["runtime", "show"]));
        let home = user.home.path();
        for (path, mode) in [
            (user.library(), 0o666),
            (user.library(), 0o664),
            (user.directory(), 0o777),
            (home.join("lstc"), 0o775),
            (home.to_owned(), 0o777),
        ] {
            let before = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            open_to(&path, mode);
            assert_failed(&show(), &["can be written to by other users", "hint: "]);
            open_to(&path, before);
            assert_done(&show());
        }
    }

    #[test]
    fn a_link_to_a_library_is_as_safe_as_the_folder_it_lies_in() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        let moved = user.home.path().join("moved");
        fs::create_dir(&moved).unwrap();
        fs::rename(user.directory(), moved.join("library")).unwrap();
        std::os::unix::fs::symlink(moved.join("library"), user.directory()).unwrap();
        let show = || output(&mut user.lstc_alone(&["runtime", "show"]));
        assert_done(&show());
        open_to(&user.home.path().join("lstc"), 0o777);
        assert_failed(&show(), &["can be written to by other users", "hint: "]);
    }

    #[test]
    fn pip_fetches_the_wheel_and_the_library_is_found() {
        let user = User::new();
        let fetched = output(user.lstc(&["runtime", "install"]).env("PIP_CACHE_DIR", pip_cache()));
        assert_done(&fetched);
        let directory = user.directory();
        assert!(
            stdout(&fetched).starts_with("installed: ONNX Runtime 1.32.0 (cpu), 33.")
                && stdout(&fetched).ends_with(&format!("MiB, in {}\n", directory.display())),
            "{}",
            stdout(&fetched)
        );
        assert_eq!(stderr(&fetched), "fetching onnxruntime==1.32.0 with pip\n");
        assert!(user.library().is_file());
        assert!(directory.join("licenses/onnxruntime/LICENSE").is_file());
        assert_eq!(user.left(), ["onnxruntime-1.32.0-cpu"]);

        let shown = output(&mut user.lstc_alone(&["runtime", "show", "--format", "json"]));
        assert_done(&shown);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(shown["library"]["path"], user.library().to_str().unwrap());
        assert_eq!(shown["library"]["version"], "1.32.0");
        assert_eq!(shown["library"]["origin"], "lstc runtime install");
        let providers = shown["library"]["providers"].as_array().unwrap();
        assert!(providers.contains(&Value::from("CPUExecutionProvider")));
        assert_eq!(shown["looked"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_wheel_is_enough_where_there_is_no_python() {
        let user = User::new();
        let without = output(&mut user.lstc_alone(&["runtime", "install"]));
        assert_failed(&without, &["Caused by: `python3` cannot be run", "hint: ", WHEEL, "--wheel"]);
        assert_eq!(user.left(), [""; 0]);

        assert_done(&user.install(&wheel()));
        assert!(user.library().is_file());
    }

    #[test]
    fn what_is_installed_is_installed_again_only_by_force() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        fs::write(user.directory().join("mark"), "").unwrap();

        let again = output(&mut user.lstc_alone(&["runtime", "install", "--format", "json"]));
        assert_done(&again);
        let report: Value = serde_json::from_slice(&again.stdout).unwrap();
        assert_eq!(report["fresh"], false);
        assert_eq!(report["library"], user.library().to_str().unwrap());
        assert!(user.directory().join("mark").exists());

        assert_done(&output(user.lstc_alone(&["runtime", "install", "--force", "--wheel"]).arg(wheel())));
        assert!(user.library().is_file() && !user.directory().join("mark").exists());
        assert_eq!(user.left(), ["onnxruntime-1.32.0-cpu"]);
    }

    #[test]
    fn what_was_installed_can_be_removed() {
        let user = User::new();
        let remove = |arguments: &[&str]| output(&mut user.lstc_alone(&[&["runtime", "remove"], arguments].concat()));
        assert_failed(&remove(&[]), &["no ONNX Runtime is installed in"]);

        assert_done(&user.install(&wheel()));
        // Another version, and what only looks like one.
        let home = user.home.path().join("lstc");
        for name in ["onnxruntime-1.30.2-cuda", "onnxruntime-1.32.0-mine", "onnxruntime"] {
            fs::create_dir(home.join(name)).unwrap();
            fs::write(home.join(name).join("file"), "12345").unwrap();
        }
        let there = "which has 1.32.0-cpu, 1.30.2-cuda";
        assert_failed(&remove(&["1.31.0"]), &["no such ONNX Runtime is installed in", there]);
        assert_failed(&remove(&["1.32.0-cuda"]), &[there]);
        assert_failed(&remove(&["../x"]), &["expected a version"]);
        assert!(user.library().is_file());

        let removed = remove(&["1.32.0", "--format", "json"]);
        assert_done(&removed);
        let report: Value = serde_json::from_slice(&removed.stdout).unwrap();
        assert_eq!(report["removed"][0]["directory"], user.directory().to_str().unwrap());
        assert!(report["removed"][0]["bytes"].as_u64() > Some(30 << 20), "{report}");
        let mut left = user.left();
        left.sort();
        assert_eq!(left, ["onnxruntime", "onnxruntime-1.30.2-cuda", "onnxruntime-1.32.0-mine"]);
        assert!(!output(&mut user.lstc_alone(&["runtime", "show"])).status.success());

        let rest = remove(&[]);
        assert_done(&rest);
        assert!(stdout(&rest).starts_with("removed: ONNX Runtime 1.30.2 (cuda), 5 bytes, from "), "{}", stdout(&rest));
        assert!(home.join("onnxruntime-1.32.0-mine/file").exists() && home.join("onnxruntime/file").exists());
        assert_done(&user.install(&wheel()));
    }

    #[test]
    fn the_users_own_index_is_asked_and_not_trusted() {
        let user = User::new();
        let shelf = tempfile::tempdir().unwrap();
        let install = || {
            let mut command = user.lstc(&["runtime", "install"]);
            command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", shelf.path());
            output(&mut command)
        };
        assert_failed(&install(), &["pip cannot download onnxruntime==1.32.0", "No matching distribution", "hint: "]);

        // pip itself refuses what is no wheel, so this one is whole but for a comment at its end.
        let served = shelf.path().join(WHEEL);
        fs::copy(wheel(), &served).unwrap();
        let served = File::options().read(true).write(true).open(served).unwrap();
        let mut served = zip::ZipWriter::new_append(served).unwrap();
        served.set_comment("changed").unwrap();
        served.finish().unwrap();
        assert_failed(&install(), &["is not the pinned wheel", SHA256]);
        assert_eq!(user.left(), [""; 0]);

        fs::copy(wheel(), shelf.path().join(WHEEL)).unwrap();
        assert_done(&install());
    }

    #[test]
    fn a_file_that_is_not_the_wheel_is_refused_with_both_digests() {
        let writers: [Writer; 4] =
            [Box::new(flipped), Box::new(truncated), Box::new(no_zip), Box::new(zip_of("../escaped"))];
        for write in writers {
            let user = User::new();
            let shelf = tempfile::tempdir().unwrap();
            let refused = user.install(&impostor(&shelf, write));
            let expected = format!("expected sha256 {SHA256} ({WHEEL})");
            assert_failed(&refused, &["is not the pinned wheel", &expected, "found    sha256 ", "--allow-unpinned"]);
            assert_eq!(user.left(), [""; 0]);
        }
    }

    #[test]
    fn a_file_that_the_user_trusts_is_still_read_with_suspicion() {
        let writers: [(Writer, &str); 6] = [
            (Box::new(flipped), "is damaged"),
            (Box::new(truncated), "cannot be read as a zip file"),
            (Box::new(no_zip), "cannot be read as a zip file"),
            (Box::new(zip_of("../escaped")), "its entry `../escaped` leads outside the directory"),
            (Box::new(zip_of("/escaped")), "its entry `/escaped` leads outside the directory"),
            (Box::new(zip_of("onnxruntime/capi/libonnxruntime.so.1")), "does not load: "),
        ];
        for (write, reason) in writers {
            let user = User::new();
            let shelf = tempfile::tempdir().unwrap();
            let file = impostor(&shelf, write);
            let refused = output(user.lstc_alone(&["runtime", "install", "--allow-unpinned", "--wheel"]).arg(&file));
            assert_failed(&refused, &["warning: ", "is not pinned", reason]);
            assert_eq!(user.left(), [""; 0]);
            assert!(!user.home.path().join("escaped").exists());
        }
    }

    #[test]
    fn cuda_needs_all_its_wheels() {
        let user = User::new();
        let args = ["runtime", "install", "--cuda", "--wheel"];
        let refused = output(user.lstc_alone(&args).arg(wheel()));
        if cfg!(target_arch = "x86_64") {
            assert_failed(&refused, &["is not the pinned wheel", "onnxruntime_gpu-1.31.1-"]);
        } else {
            assert_failed(&refused, &["there is no ONNX Runtime wheel for cuda"]);
        }
    }

    #[test]
    fn installations_at_the_same_time_make_one() {
        let user = User::new();
        // What an installation leaves that is killed.
        let killed = user.home.path().join("lstc/.lstc-1-killed");
        fs::create_dir_all(killed.join("content")).unwrap();
        fs::write(killed.join(".temporary"), "").unwrap();

        let wheel = wheel();
        let start = || user.lstc_alone(&["runtime", "install", "--wheel"]).arg(&wheel).stdout(Stdio::piped()).spawn();
        let running: Vec<_> = (0..4).map(|_| start().unwrap()).collect();
        let ended: Vec<Output> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        ended.iter().for_each(assert_done);
        let fresh = ended.iter().filter(|output| stdout(output).starts_with("installed: ")).count();
        assert_eq!(fresh, 1);
        assert_eq!(user.left(), ["onnxruntime-1.32.0-cpu"]);
    }
}

mod find {
    use super::*;

    /// A library that says that it is ONNX Runtime 1.20.0, and can do nothing else.
    fn old_library(directory: &Path) -> PathBuf {
        let source = "typedef struct { const void *(*api)(unsigned); const char *(*version)(void); } Base;
            static const char *version(void) { return \"1.20.0\"; }
            static const Base base = { 0, version };
            const Base *OrtGetApiBase(void) { return &base; }";
        fs::write(directory.join("old.c"), source).unwrap();
        let library = directory.join("libonnxruntime.so.1.20.0");
        let compiled =
            output(Command::new("cc").args(["-shared", "-fPIC", "old.c", "-o"]).arg(&library).current_dir(directory));
        assert_done(&compiled);
        library
    }

    fn show(command: &mut Command) -> (Output, Value) {
        let shown = output(command.args(["runtime", "show", "--format", "json"]));
        let report = serde_json::from_slice(&shown.stdout).unwrap();
        (shown, report)
    }

    #[test]
    fn the_variable_overrules_every_other_place() {
        let (user, other) = (User::new(), User::new());
        assert_done(&user.install(&wheel()));
        assert_done(&other.install(&wheel()));
        let (shown, report) = show(user.lstc_alone(&[]).env("ORT_DYLIB_PATH", other.library()));
        assert_done(&shown);
        assert_eq!(report["library"]["path"], other.library().to_str().unwrap());
        assert_eq!(report["library"]["origin"], "ORT_DYLIB_PATH");
    }

    #[test]
    fn a_variable_that_names_no_library_is_an_error() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        let old = old_library(user.home.path());
        let text = user.home.path().join("text.so");
        fs::write(&text, "text").unwrap();
        let cases = [
            (user.home.path().join("nothing.so"), "no library there"),
            (user.home.path().to_owned(), "no library there"),
            (text, "does not load"),
            (old, "version 1.20.0, older than the 1.28.0 that lstc needs"),
        ];
        for (path, reason) in cases {
            let (shown, report) = show(user.lstc_alone(&[]).env("ORT_DYLIB_PATH", &path));
            assert_failed(&shown, &["error: ORT_DYLIB_PATH names `", reason, "hint: unset ORT_DYLIB_PATH"]);
            assert_eq!(report["library"], Value::Null);
            assert_eq!(report["looked"].as_array().unwrap().len(), 1);
        }
    }

    #[test]
    fn a_python_environment_serves_and_what_is_installed_comes_first() {
        let user = User::new();
        let packages = user.home.path().join("venv/lib/python3.12/site-packages/onnxruntime");
        assert_done(&user.install(&wheel()));
        fs::create_dir_all(&packages).unwrap();
        fs::rename(user.directory(), packages.join("capi")).unwrap();

        let environment = user.home.path().join("venv");
        let (shown, report) = show(user.lstc_alone(&[]).env("VIRTUAL_ENV", &environment));
        assert_done(&shown);
        assert_eq!(report["library"]["origin"], "Python package");
        // What happens to lie in the working directory is no environment.
        let mut here = user.lstc_alone(&[]);
        here.current_dir(&environment).env("VIRTUAL_ENV", ".").env("CONDA_PREFIX", "../venv");
        let (_, report) = show(&mut here);
        assert_eq!(report["library"], Value::Null);

        assert_done(&user.install(&wheel()));
        let (_, report) = show(user.lstc_alone(&[]).env("VIRTUAL_ENV", &environment));
        assert_eq!(report["library"]["origin"], "lstc runtime install");
    }

    #[test]
    fn an_old_library_is_passed_over() {
        let user = User::new();
        let system = tempfile::tempdir().unwrap();
        old_library(system.path());
        let (shown, report) = show(user.lstc_alone(&[]).env("LD_LIBRARY_PATH", system.path()));
        let looks = report["looked"].as_array().unwrap();
        let old = looks.iter().find(|look| look["path"].as_str().unwrap().ends_with("1.20.0")).unwrap();
        assert_eq!(old["usable"], false);
        assert_eq!(old["result"], "version 1.20.0, older than the 1.28.0 that lstc needs");
        if report["library"].is_null() {
            assert_failed(&shown, &["libonnxruntime.so.1.20.0`: version 1.20.0, older than"]);
        }
    }

    #[test]
    fn where_there_is_none_the_hint_says_how_to_get_one() {
        let user = User::new();
        let (shown, report) = show(&mut user.lstc_alone(&[]));
        if report["library"]["origin"] == "system" {
            return;
        }
        assert_failed(&shown, &[]);
        assert_eq!(
            stderr(&shown),
            "error: no usable ONNX Runtime library was found\nhint: `lstc runtime install` fetches one\n"
        );
    }

    #[test]
    fn a_library_without_cuda_does_not_serve_cuda() {
        let user = User::new();
        assert_done(&user.install(&wheel()));
        let system = user.directory();
        let shown = output(user.lstc_alone(&["runtime", "show", "--device", "cuda"]).env("LD_LIBRARY_PATH", system));
        assert_failed(&shown, &["without the CUDA provider beside it", "hint: `lstc runtime install --cuda`"]);
    }

    #[test]
    fn a_closed_stdout_is_no_error() {
        let user = User::new();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = user.lstc_alone(&["runtime", "show"]);
        let ended = output(command.env("ORT_DYLIB_PATH", "/nothing").stdout(writer));
        assert_done(&ended);
        assert_eq!(stderr(&ended), "");
    }
}

#[test]
fn onnx_runtime_leaves_nothing_in_the_users_home() {
    let user = User::new();
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/relu_torchscript/model.onnx");
    let output_folder = TempDir::new().unwrap();
    let tuned = output_folder.path().join("tuned");
    // To measure the quantised backbone, a session is opened.
    let mut command = user.lstc(&["rewrite", case, "-r", "4", "--backbone", "int8", "-o"]);
    command.arg(&tuned).env_clear().env("HOME", user.home.path());
    assert_done(&output(command.env("ORT_DYLIB_PATH", &common::runtime().library().path)));
    let left: Vec<_> = fs::read_dir(user.home.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

mod session {
    use super::*;

    fn open(model: &str) -> Session {
        common::runtime().session().open(Path::new(model)).unwrap()
    }

    fn ab() -> (Tensor, Tensor) {
        (array![[1f32, 2.], [3., 4.]].into(), array![[10f32, 20.], [30., 40.]].into())
    }

    #[test]
    fn outputs_come_in_the_order_in_which_they_are_asked_for() {
        let (a, b) = ab();
        let mut session = open(ADD);
        let outputs = session.run(&[("b", &b), ("a", &a)], &["difference", "sum"]).unwrap();
        assert_eq!(outputs[0], array![[-9f32, -18.], [-27., -36.]].into());
        assert_eq!(outputs[1], array![[11f32, 22.], [33., 44.]].into());
        let sum = session.run(&[("a", &a), ("b", &b)], &["sum"]).unwrap();
        assert_eq!(sum[0].as_f32().unwrap()[[1, 1]], 44.);
        assert_eq!(session.run(&[("a", &a), ("b", &b)], &[]).unwrap(), []);
    }

    #[test]
    fn every_option_gives_the_same_sums() {
        let (a, b) = ab();
        let model = fs::read(ADD).unwrap();
        for optimisation in [Optimisation::Off, Optimisation::All] {
            let builder = common::runtime().session().optimisation(optimisation).threads(1).deterministic(true);
            let mut session = builder.device(Device::Cpu).load(&model, None).unwrap();
            let sum = session.run(&[("a", &a), ("b", &b)], &["sum"]).unwrap();
            assert_eq!(sum[0], array![[11f32, 22.], [33., 44.]].into());
        }
    }

    #[test]
    fn an_array_in_any_layout_and_of_any_size_is_read_in_its_order() {
        let (a, _) = ab();
        let transposed = Tensor::from(array![[1f32, 3.], [2., 4.]].reversed_axes());
        let mut session = open(ADD);
        let sum = session.run(&[("a", &a), ("b", &transposed)], &["sum"]).unwrap();
        assert_eq!(sum[0], array![[2f32, 4.], [6., 8.]].into());

        let empty = Tensor::from(Array::<f32, _>::zeros((0, 2)));
        let sum = session.run(&[("a", &empty), ("b", &empty)], &["sum"]).unwrap();
        assert_eq!(sum[0].shape(), [0, 2]);
    }

    #[test]
    fn ports_are_described() {
        let session = open(ADD);
        let names: Vec<_> = session.inputs().iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let sum = &session.outputs()[0];
        assert_eq!((sum.name.as_str(), sum.element_type), ("sum", ElementType::Float32));
        assert_eq!(sum.dims, [Dim::Symbol("batch".into()), Dim::Known(2)]);
        assert_eq!(open(TYPES).inputs()[0].dims, [Dim::Unknown]);
    }

    #[test]
    fn every_element_type_passes_through() {
        let tensors: [(&str, Tensor); 6] = [
            ("f32", array![1.5f32, f32::NEG_INFINITY].into()),
            ("f64", array![1.0f64 / 3.0, -0.0].into()),
            ("f16", array![f16::from_f32(0.5), f16::MAX].into()),
            ("i32", array![i32::MIN, 7].into()),
            ("i64", array![i64::MIN, 7].into()),
            ("bool", array![true, false].into()),
        ];
        let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut session = open(TYPES);
        for (name, tensor) in &tensors {
            assert_eq!(&tensor.element_type().to_string(), name);
            let output = session.run(&inputs, &[&format!("{name}.out")]).unwrap();
            assert_eq!(&output[0], tensor);
        }
        let refused = session.run(&inputs, &["u8.out"]).unwrap_err();
        assert_eq!(refused.to_string(), "`u8.out` is u8, which lstc does not read");
        assert!(tensors[0].1.as_i64().is_err());
    }

    #[test]
    fn external_data_lies_beside_the_file_or_where_the_caller_says() {
        let x = Tensor::from(array![1f32, 2., 3.]);
        let y = Tensor::from(array![1f32, 20., 300.]);
        assert_eq!(open(SCALE).run(&[("x", &x)], &["y"]).unwrap()[0], y);

        let model = fs::read(SCALE).unwrap();
        let folder = Path::new(SCALE).parent().unwrap();
        let mut session = common::runtime().session().load(&model, Some(folder)).unwrap();
        assert_eq!(session.run(&[("x", &x)], &["y"]).unwrap()[0], y);

        let nowhere = tempfile::tempdir().unwrap();
        let lost = common::runtime().session().load(&model, Some(nowhere.path())).unwrap_err();
        assert!(matches!(lost, Error::Model { .. }), "{lost}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (a, b) = ab();
        let mut session = open(ADD);
        let mut refuse = |inputs: &[(&str, &Tensor)], output| session.run(inputs, &[output]).unwrap_err();
        let unknown_input = refuse(&[("a", &a), ("c", &b)], "sum");
        assert_eq!(unknown_input.to_string(), "the model has no input `c`; it has `a`, `b`");
        let unknown_output = refuse(&[("a", &a), ("b", &b)], "product");
        assert_eq!(unknown_output.to_string(), "the model has no output `product`; it has `sum`, `difference`");
        let wrong_type = refuse(&[("a", &a), ("b", &Array1::<i64>::zeros(2).into())], "sum");
        assert_eq!(wrong_type.to_string(), "`b` is f32, not i64");
        for inputs in [&[("a", &a)][..], &[("a", &a), ("b", &array![[1f32, 2., 3.]].into())]] {
            assert!(matches!(refuse(inputs, "sum"), Error::Run { .. }));
        }
    }

    #[test]
    fn what_is_no_model_is_named() {
        let missing = common::runtime().session().open(Path::new("/nothing.onnx")).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read the model `/nothing.onnx`");
        let broken = common::runtime().session().load(b"not a model", None).unwrap_err();
        assert_eq!(broken.to_string(), "ONNX Runtime refuses the model");
    }

    #[test]
    fn a_process_runs_on_one_library() {
        let runtime = common::runtime();
        assert!(std::ptr::eq(runtime, Runtime::load(runtime.library()).unwrap()));
        let other = Library { path: "/other.so".into(), origin: Origin::System, ..runtime.library().clone() };
        assert!(matches!(Runtime::load(&other), Err(Error::AlreadyLoaded { .. })));
    }

    /// Runs on CUDA where the library and the machine have it; elsewhere there is an error and no session.
    #[test]
    fn cuda_is_used_or_refused_and_never_replaced() {
        let (a, b) = ab();
        match common::runtime().session().device(Device::Cuda(0)).open(Path::new(ADD)) {
            Ok(mut session) => {
                let sum = session.run(&[("a", &a), ("b", &b)], &["sum"]).unwrap();
                assert_eq!(sum[0], array![[11f32, 22.], [33., 44.]].into());
            }
            Err(Error::WithoutCuda { .. }) => {}
            Err(error) => assert!(error.to_string().starts_with("cannot use CUDA device 0"), "{error}"),
        }
    }
}
