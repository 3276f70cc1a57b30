//! The stock CUDA provider on the stand-in device of `tests/standin`, for machines without a GPU: built once and kept with the build.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What is fetched: ONNX Runtime for CUDA, and the headers that the stand-in is built with.
const ONNX_RUNTIME: &str = "onnxruntime-gpu==1.31.1";
const HEADERS: &str = "nvidia-cuda-runtime==13.0.96";

const LIBRARY: &str = "libonnxruntime.so.1.31.1";

/// Where everything lies that a run needs.
pub struct StandIn {
    /// ONNX Runtime and the stand-in's libraries, side by side.
    pub libraries: PathBuf,
    /// The stand-in's cuDNN, which is not beside them: nothing needs it.
    pub cudnn: PathBuf,
}

/// The stand-in, or `None` where the package index cannot be reached.
pub fn stand_in() -> Option<&'static StandIn> {
    static STAND_IN: OnceLock<Option<StandIn>> = OnceLock::new();
    STAND_IN.get_or_init(build).as_ref()
}

fn build() -> Option<StandIn> {
    // One build for all test processes.
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(temporary.join("standin.lock")).expect("a writable build folder");
    lock.lock().expect("the lock of the build folder");
    let downloads = std::env::var_os("LSTC_TEST_DOWNLOADS").map_or_else(|| temporary.join("downloads"), PathBuf::from);
    let (Some(runtime), Some(headers)) = (fetched(ONNX_RUNTIME, &downloads), fetched(HEADERS, &downloads)) else {
        println!("skipped: the package index cannot be reached, and {ONNX_RUNTIME} was not fetched before");
        return None;
    };
    let (built, libraries) = (temporary.join("standin"), temporary.join("standin/libraries"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin");
    let mut build = Command::new("bash");
    build.arg(source.join("build.sh")).arg(&built).arg(folder_of(&headers, "cuda_runtime_api.h"));
    assert_done(&output(&mut build), "the stand-in builds");
    fs::create_dir_all(&libraries).expect("a writable build folder");
    let capi = runtime.join("onnxruntime/capi");
    for name in [LIBRARY, "libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"] {
        let target = libraries.join(name);
        if !target.exists() && fs::hard_link(capi.join(name), &target).is_err() {
            fs::copy(capi.join(name), &target).expect("room for ONNX Runtime's libraries");
        }
    }
    for file in fs::read_dir(built.join("lib")).expect("the stand-in was built").flatten() {
        fs::copy(file.path(), libraries.join(file.file_name())).expect("room for the stand-in's libraries");
    }
    Some(StandIn { libraries, cudnn: built.join("cudnn") })
}

/// A package's files, unpacked; fetched by pip where they were not before.
fn fetched(package: &str, downloads: &Path) -> Option<PathBuf> {
    let folder = downloads.join(package);
    if folder.exists() {
        return Some(folder);
    }
    fs::create_dir_all(downloads).expect("a writable folder");
    let fresh = tempfile::tempdir_in(downloads).expect("a writable folder");
    let (wheels, unpacked) = (fresh.path().join("wheels"), fresh.path().join("unpacked"));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]);
    pip.args(["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64"]);
    pip.args(["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--dest"]);
    if !output(pip.arg(&wheels).arg(package)).status.success() {
        return None;
    }
    let wheel = fs::read_dir(&wheels).ok()?.flatten().next()?.path();
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked);
    assert_done(&output(&mut unpack), "the wheel unpacks");
    // Another process may have been faster.
    let _ = fs::rename(&unpacked, &folder);
    Some(folder)
}

/// The folder below `root` that holds a file of this name.
fn folder_of(root: &Path, file: &str) -> PathBuf {
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        if folder.join(file).is_file() {
            return folder;
        }
        let entries = fs::read_dir(&folder).expect("a readable folder").flatten();
        open.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    panic!("`{}` holds no {file}", root.display());
}

impl StandIn {
    /// `lstc` with these arguments, on the stand-in.
    pub fn lstc(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
        command.args(arguments).stdin(Stdio::null());
        command.env("ORT_DYLIB_PATH", self.libraries.join(LIBRARY)).env("LD_LIBRARY_PATH", &self.libraries);
        command
    }

    /// Runs `lstc` on the stand-in; what the device saw of it, or what was said of the failure.
    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Log, String> {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = self.lstc(arguments);
        let ended = output(command.env("STANDIN_LOG", log.path()).envs(variables.iter().copied()));
        match ended.status.success() {
            true => Ok(Log(fs::read_to_string(log.path()).expect("the stand-in writes a log"))),
            false => Err(String::from_utf8_lossy(&ended.stderr).into_owned()),
        }
    }
}

/// What the device saw, one event a line.
pub struct Log(String);

impl Log {
    /// The lines that begin with these words.
    pub fn lines<'l>(&'l self, words: &str) -> impl Iterator<Item = &'l str> {
        self.0
            .lines()
            .filter(move |line| line.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
    }

    pub fn count(&self, words: &str) -> usize {
        self.lines(words).count()
    }

    /// True where copies within the device come between the first launch of a captured graph and the second, and none behind.
    pub fn restores(&self, graph: usize) -> bool {
        let replay = format!("REPLAY {graph} ");
        let mut launched = 0;
        let mut copies = [0, 0];
        for line in self.0.lines() {
            launched += usize::from(line.starts_with(&replay));
            if line.starts_with("COPY D2D") && launched > 0 {
                copies[(launched - 1).min(1)] += 1;
            }
        }
        copies[0] > 0 && copies[1] == 0
    }

    /// Events by kind; a copy with its direction and bytes.
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for line in self.0.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let kind = match words[..] {
                ["COPY", direction, host, bytes, _] => format!("COPY {direction} {host} {bytes}"),
                ["WAIT", what] => format!("WAIT {what}"),
                [first, ..] => first.to_owned(),
                [] => continue,
            };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        kinds
    }
}

pub fn output(command: &mut Command) -> Output {
    command.output().expect("the command runs")
}

#[track_caller]
pub fn assert_done(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
