//! The commands in README.md and docs/ run as they stand.
//!
//! A ```` ```console ```` block has commands behind `$ `, and what they print; a ```` ```sh ```` block has commands for machines and
//! packages that a test does not have, each of which must be one of those listed here. README's own commands come first; every page
//! begins with what they leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Beginnings of commands that are shown, but not run here: builds, packages, PyTorch, CUDA.
const NOT_RUN: [&str; 6] =
    ["cargo ", "pip install ", "optimum-cli export onnx ", "python ", "lstc runtime install", "git clone "];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The commands of a page's blocks of one kind, in order.
fn commands(page: &Path, kind: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.trim().strip_prefix("```") {
            Some(language) => inside = !inside && language == kind,
            None if inside && kind == "console" => commands.extend(line.strip_prefix("$ ").map(str::to_owned)),
            None if inside => commands.push(line.to_owned()),
            None => {}
        }
    }
    commands.retain(|command| !command.trim().is_empty());
    commands
}

/// Runs a page's commands in a folder.
fn run(page: &Path, folder: &Path) -> usize {
    let binary = Path::new(env!("CARGO_BIN_EXE_lstc")).parent().expect("a file lies in a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let mut ran = 0;
    for command in commands(page, "console") {
        if NOT_RUN.iter().any(|beginning| command.starts_with(beginning)) {
            continue;
        }
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &command])
            .current_dir(folder)
            .env("PATH", &path)
            .output()
            .expect("bash is there");
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: `{command}` ended with {}\n{talk}", page.display(), output.status);
        ran += 1;
    }
    ran
}

/// A model, as if it had been exported to `t5/`, and few rows of data.
fn beginning() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("t5");
    fs::create_dir(&model).expect("a folder");
    for file in ["model.onnx", "config.json", "tokenizer.json"] {
        fs::copy(root().join("models/t5-nano").join(file), model.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    for (name, rows) in [("train", 256), ("test", 64)] {
        let all = fs::read_to_string(root().join(format!("examples/glosses.{name}.jsonl"))).expect("the glosses");
        let few: Vec<&str> = all.lines().take(rows).collect();
        fs::write(folder.path().join(format!("{name}.jsonl")), few.join("\n") + "\n").expect("a file");
    }
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap_or_else(|e| panic!("{}: {e}", target.display()));
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("docs")).expect("docs/").flatten().map(|entry| entry.path()).collect();
    pages.sort();
    pages
}

#[test]
fn commands_run_as_they_stand() {
    let begun = beginning();
    let readme = run(&root().join("README.md"), begun.path());
    assert!(readme >= 4, "README.md has {readme} commands of lstc");
    for page in pages() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(begun.path(), folder.path());
        println!("{}: {} commands ran", page.display(), run(&page, folder.path()));
    }
}

#[test]
fn what_does_not_run_here_is_known() {
    for page in pages().into_iter().chain([root().join("README.md")]) {
        for command in commands(&page, "sh") {
            let known = NOT_RUN.iter().any(|beginning| command.starts_with(beginning));
            let cuda = command.contains("--device cuda") || command.contains("--cuda");
            assert!(
                known || cuda || command.starts_with('#'),
                "{}: `{command}`: show it in a console block",
                page.display()
            );
        }
    }
}

/// Links within the documentation lead somewhere.
#[test]
fn links_lead_somewhere() {
    for page in
        pages().into_iter().chain(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root().join(name)))
    {
        let text = fs::read_to_string(&page).expect("a page");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() { page.clone() } else { page.parent().expect("a folder").join(file) };
            assert!(linked.exists(), "{}: {target}", page.display());
            if !anchor.is_empty() {
                let linked = fs::read_to_string(&linked).expect("a page");
                let mut headings = linked.lines().filter_map(|line| line.strip_prefix('#'));
                let found = headings.any(|heading| slug(heading.trim_start_matches('#').trim()) == anchor);
                assert!(found, "{}: {target}", page.display());
            }
        }
    }
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).expect("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines");
}
