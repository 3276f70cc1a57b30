//! The page of `lstc inspect --format html`: sound, complete and inert, and its drawing free of overlaps.

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lstc::inspect::layout::{Arrangement, Block, Layout, Part, Rect};
use lstc::inspect::{Head, Ladder, Rung, Stack, Tap};
use lstc::rewrite::{Request, rewrite};
use lstc_graph::{DataFiles, encode, load};
use lstc_models::TowerKind;
use lstc_tuned::config::Config;
use lstc_tuned::gates::{Gate, State};
use lstc_tuned::side;

use cli::{lstc, stderr, stdout, text};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn inspect(path: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
    command.arg("inspect").arg(path).args(flags).output().expect("lstc runs")
}

/// The page, and the exit code.
#[track_caller]
fn page(path: &Path, flags: &[&str]) -> (String, i32) {
    let output = inspect(path, &[&["--format", "html"], flags].concat());
    let code = output.status.code().expect("it ends");
    assert!(code < 2, "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).expect("UTF-8"), code)
}

/// A case's model in a folder, rewritten with the case's own options.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(name: &str) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = Tuned { folder };
        fs::copy(case(name).join("model.onnx"), tuned.model()).expect("the case is committed");
        tuned.rewrite(name);
        tuned
    }

    fn rewrite(&self, name: &str) {
        let options = Config::read(&case(name).join("lst.yaml")).expect("the case's options").options();
        let (model, output) = (self.model(), self.directory());
        rewrite(
            Request { model: (&model).into(), options, training: Default::default(), output: &output, force: true },
            |_, _| (),
        )
        .unwrap_or_else(|e| panic!("{e:?}"));
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("tuned")
    }
}

/// The page's body as XML, which it is but for breaks.
fn body(page: &str) -> String {
    let from = page.find("<body>").expect("a body");
    let to = page.find("</body>").expect("its end") + "</body>".len();
    page[from..to].replace("<br>", "<br/>").replace("<wbr>", "<wbr/>")
}

/// All texts of the page's drawing in one arrangement.
fn drawn(page: &str, class: &str) -> Vec<String> {
    let body = body(page);
    let tree = roxmltree::Document::parse(&body).unwrap_or_else(|e| panic!("{e}\n{body}"));
    let place = tree.descendants().find(|n| n.attribute("class") == Some(class)).expect("the drawing");
    let texts = place.descendants().filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", "text")));
    texts.filter_map(|n| n.text().map(str::to_owned)).collect()
}

/// Nothing in the page is fetched or run.
#[track_caller]
fn inert(page: &str) {
    let without_namespaces = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for forbidden in
        ["http:", "https:", "<script", "<iframe", "<img", "<object", "@import", " src=", " onload", "javascript:"]
    {
        assert!(!without_namespaces.contains(forbidden), "{forbidden}");
    }
    assert_eq!(page.matches("url(").count(), page.matches("url(#").count());
    assert_eq!(page.matches(" href=").count(), page.matches(" href=\"data:,\"").count());
}

#[test]
fn a_directorys_page_shows_every_block_rung_and_gate() {
    for name in ["merge_last", "first_block_dropped", "two_and_three_blocks", "no_gate_merge_distill"] {
        let tuned = Tuned::new(name);
        let (page, code) = page(&tuned.directory(), &[]);
        assert_eq!(code, 0);
        inert(&page);
        let json = inspect(&tuned.directory(), &["--format", "json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        let stacks = report["ladder"]["stacks"].as_array().expect("stacks");
        for class in ["beside", "stacked"] {
            let texts = drawn(&page, class);
            let count = |text: &str| texts.iter().filter(|t| *t == text).count();
            let mut gates = usize::from(!report["ladder"]["head"]["merge"].is_null());
            let mut rungs = stacks.len();
            for block in 0..3 {
                let has = |s: &&serde_json::Value| s["rungs"].get(block).is_some();
                let kept = |s: &&serde_json::Value| s["rungs"].get(block).is_some_and(|r| !r.is_null());
                let dropped = stacks.iter().filter(|s| has(s) && !kept(s)).count();
                let all = stacks.iter().filter(has).count();
                let side = stacks.iter().filter(kept).count();
                assert_eq!(count(&format!("side block {block}")), side, "{name}, {class}: {texts:?}");
                assert_eq!(count(&format!("block {block}")), all + dropped, "{name}, {class}: {texts:?}");
                rungs += side;
                gates += stacks.iter().filter(|s| s["rungs"][block]["gate"].is_object()).count();
            }
            assert_eq!(
                texts.iter().filter(|t| t.contains(" → ") && !t.contains('·')).count(),
                rungs,
                "{name}: {texts:?}"
            );
            assert_eq!(texts.iter().filter(|t| t.ends_with(" initial")).count(), gates, "{name}, {class}: {texts:?}");
            assert_eq!((count("up-projection"), count("LM head"), count("final side norm")), (1, 1, stacks.len()));
        }
        let roles = |role: &str| page.contains(&format!("<th scope=\"row\">{role}</th>"));
        assert_eq!(roles("final output"), !report["ladder"]["head"]["merge"].is_null(), "{name}");
        assert_eq!(roles("logits"), report["ladder"]["head"]["distilled"] == true, "{name}");
        assert!(page.contains("Nodes by pass") && page.contains("full fine-tuning"), "{name}");
    }
}

#[test]
fn gates_are_those_of_the_file() {
    let tuned = Tuned::new("merge_last");
    let initial = tuned.directory().join("side.safetensors");
    let mut side = side::load(&initial).expect("the initial side network");
    // With this case's T of 0.5: sigmoid of 1, -2 and 0.3.
    let alphas = [
        ("encoder.side_gate_params.0", 0.5),
        ("decoder.side_gate_params.1", -1.0),
        ("side_gate_params_merge_last", 0.15),
    ];
    for (name, alpha) in alphas {
        side.get_mut(name).expect("a gate").fill(alpha);
    }
    let elsewhere = tuned.folder.path().join("elsewhere.safetensors");
    side::save(&elsewhere, &side).expect("it can be written");
    let has = |page: &str| {
        let texts = drawn(page, "beside");
        ["0.731", "0.119", "0.574"].iter().all(|g| texts.iter().any(|t| t == g))
    };
    let temperature = Config::read(&tuned.directory().join("lst.yaml")).expect("a manifest").method.temperature;
    assert_eq!(temperature, 0.5);
    assert!(!has(&page(&tuned.directory(), &[]).0));
    assert!(has(&page(&tuned.directory(), &["--side", elsewhere.to_str().expect("UTF-8")]).0));
    // What training leaves is found without being told, and gives way to what is told.
    fs::create_dir(tuned.directory().join("run")).expect("a folder");
    fs::copy(&elsewhere, tuned.directory().join("run/best.safetensors")).expect("a copy");
    let (found, _) = page(&tuned.directory(), &[]);
    assert!(has(&found) && found.contains("run/best.safetensors"));
    let (told, _) = page(&tuned.directory(), &["--side", initial.to_str().expect("UTF-8")]);
    assert!(!has(&told) && drawn(&told, "beside").iter().any(|t| t.ends_with(" initial")));
    let text = String::from_utf8(inspect(&tuned.directory(), &[]).stdout).expect("UTF-8");
    assert!(
        text.contains("gates, trained") && text.contains("0: 0.731") && text.contains("merge_last  0.574"),
        "{text}"
    );
}

#[test]
fn a_file_that_does_not_fit_is_refused_by_tensor() {
    let tuned = Tuned::new("merge_last");
    let mut side = side::load(&tuned.directory().join("side.safetensors")).expect("the initial side network");
    let moved = side.remove("encoder.side_gate_params.1").expect("a gate");
    side.insert("encoder.side_gate_params.7".to_owned(), moved);
    side.insert("side_gate_params_merge_last".to_owned(), ndarray::ArrayD::zeros(vec![2]));
    let other = tuned.folder.path().join("other.safetensors");
    side::save(&other, &side).expect("it can be written");
    let output = inspect(&tuned.directory(), &["--format", "html", "--side", other.to_str().expect("UTF-8")]);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{talk}");
    assert!(output.stdout.is_empty());
    for words in [
        "`encoder.side_gate_params.1` is missing",
        "`side_gate_params_merge_last` is [2] in the file, and [1] in the rewritten model",
    ] {
        assert!(talk.contains(words), "{words}:\n{talk}");
    }
    let model = inspect(&tuned.model(), &["--side", other.to_str().expect("UTF-8")]);
    assert!(String::from_utf8_lossy(&model.stderr).contains("--side needs a directory"));
}

#[test]
fn a_manifest_that_the_graphs_were_not_made_with_is_refused() {
    let tuned = Tuned::new("two_and_three_blocks");
    let manifest = tuned.directory().join("lst.yaml");
    let sound = fs::read_to_string(&manifest).expect("a manifest");
    for (from, to, words) in [
        ("blocks: 3", "blocks: 900000000000", "blocks is 900000000000, and train.onnx was made with 3"),
        ("blocks: 3", "blocks: 1", "blocks is 1, and train.onnx was made with 3"),
        ("point: embedding", "point: nowhere", "`nowhere` is not the point of a tap"),
        ("name: encoder.side_first_downsample.weight", "name: x", "name is \"x\", and train.onnx was made with"),
    ] {
        assert!(sound.contains(from), "{from}");
        fs::write(&manifest, sound.replace(from, to)).expect("it can be written");
        let output = inspect(&tuned.directory(), &["--format", "html"]);
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && talk.contains(words), "{to}: {talk}");
    }
}

#[test]
fn a_prediction_needs_the_source_and_says_so() {
    let tuned = Tuned::new("two_and_three_blocks");
    let directory = tuned.directory();
    let memory = |output: Output| -> serde_json::Value {
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")["memory"].clone()
    };
    let made = memory(inspect(&directory, &["--format", "json", "--batch", "2"]));
    assert!(made["lst"]["activations"].as_u64() < made["full"]["activations"].as_u64(), "{made}");
    assert_eq!(made["sizes"]["batch"], 2);
    let text = |output: Output| String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text(inspect(&directory, &[])).contains("full fine-tuning"));
    fs::write(tuned.model(), b"another").expect("it can be written");
    let changed = memory(inspect(&directory, &["--format", "json"]));
    assert!(changed["left_out"].as_str().is_some_and(|r| r.contains("has changed")), "{changed}");
    fs::remove_file(tuned.model()).expect("it was there");
    assert!(text(inspect(&directory, &[])).contains("left out, because cannot read the source"));
    let (page, code) = page(&directory, &[]);
    assert_eq!(code, 0);
    assert!(page.contains("The prediction is left out") && !page.contains("full fine-tuning"));
    assert!(drawn(&page, "beside").iter().any(|t| t == "side block 2"));
}

#[test]
fn a_models_page_shows_the_default_ladder() {
    let (page, code) = page(&case("two_and_three_blocks/model.onnx"), &[]);
    assert_eq!(code, 0);
    inert(&page);
    let texts = drawn(&page, "stacked");
    assert_eq!(texts.iter().filter(|t| *t == "0.500 initial").count(), 5, "{texts:?}");
    assert!(page.contains("Predicted memory") && page.contains("Weights in the file"));
}

#[test]
fn a_refused_model_has_a_page_with_the_reasons() {
    let (page, code) = page(&case("refused/unknown_activation.onnx"), &[]);
    assert_eq!(code, 1);
    inert(&page);
    assert_eq!(page.matches("computes Elu").count(), 2);
    assert!(!page.contains("<figure"));
    roxmltree::Document::parse(&body(&page)).expect("XML");
}

#[test]
fn names_from_files_are_inert() {
    const HOSTILE: &str = "</svg></title><script>alert(1)</script>\" onload=\"alert(2)\u{1}";
    let tuned = Tuned::new("relu_torchscript");
    let mut graph = load(&tuned.model()).expect("the case");
    graph.producer = HOSTILE.to_owned();
    let renamed: Vec<_> =
        graph.inputs.iter().copied().chain(graph.node_ids().filter_map(|n| graph.node(n).output(0))).collect();
    for (at, value) in renamed.into_iter().enumerate() {
        if !graph.outputs.contains(&value) {
            graph.rename(value, &format!("{HOSTILE}{at}")).expect("the name is free");
        }
    }
    fs::write(tuned.model(), encode(&graph, &DataFiles::default())).expect("it can be written");
    tuned.rewrite("relu_torchscript");
    let odd = tuned.folder.path().join("<script>alert(3)<b>&\"'");
    fs::rename(tuned.directory(), &odd).expect("a new name");
    for path in [tuned.model(), odd] {
        let (page, _) = page(&path, &[]);
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;";
        assert!(page.matches(escaped).count() > 10, "{}", page.matches(escaped).count());
        assert!(!page.contains("<script") && !page.contains('\u{1}'));
        assert!(!page.contains("\" onload=\""));
        assert_eq!(page.matches("</svg>").count(), page.matches("<svg").count());
        roxmltree::Document::parse(&body(&page)).unwrap_or_else(|e| panic!("{e}"));
    }
}

fn stack(tower: TowerKind, kept: &[bool], (width, elements): (usize, usize), state: State) -> Stack {
    let tap = || Tap { value: "h".to_owned(), elements };
    let gate = Some(Gate { value: 0.25, state });
    Stack {
        tower,
        tokens: "input_ids_of_a_model_whose_author_likes_names_that_are_long".to_owned(),
        width,
        side_width: width / 2,
        first: tap(),
        rungs: kept.iter().map(|k| k.then(|| Rung { tap: Some(tap()), gate, elements })).collect(),
        free: Vec::new(),
        merge: lstc_passes::options::Merge::Before,
        norm: width,
        elements,
        cross_attention: tower == TowerKind::Decoder,
    }
}

fn ladder(stacks: Vec<Stack>, merge: Option<State>, distilled: bool) -> Ladder {
    let merge = merge.map(|state| Gate { value: 0.999, state });
    Ladder { reduction: 2, stacks, head: Head { elements: 123_456, merge, distilled, vocabulary: 250_112 } }
}

/// The rectangle that a line covers.
fn line(a: (f64, f64), b: (f64, f64)) -> Rect {
    let (x, y) = (a.0.min(b.0), a.1.min(b.1));
    Rect { x, y, w: (a.0 - b.0).abs(), h: (a.1 - b.1).abs() }
}

/// A rectangle without its outermost half pixel: lines end at edges.
fn inside(r: &Rect) -> Rect {
    Rect { x: r.x + 0.5, y: r.y + 0.5, w: r.w - 1.0, h: r.h - 1.0 }
}

#[track_caller]
fn holds_its_invariants(ladder: &Ladder, arrangement: Arrangement) {
    let layout = Layout::new(ladder, arrangement);
    let all = Rect { x: 0.0, y: 0.0, w: layout.width, h: layout.height };
    for (at, a) in layout.blocks.iter().enumerate() {
        assert!(layout.panels.iter().any(|p| p.holds(&a.rect)), "{a:?} is on no panel");
        for b in &layout.blocks[at + 1..] {
            assert!(!a.rect.overlaps(&b.rect), "{a:?} and {b:?}");
        }
    }
    for (at, text) in layout.texts.iter().enumerate() {
        let bounds = text.bounds();
        assert!(all.holds(&bounds), "{text:?} stands out");
        assert!(layout.panels.iter().any(|p| p.holds(&bounds)), "{text:?} is on no panel");
        for other in &layout.texts[at + 1..] {
            assert!(!bounds.overlaps(&other.bounds()), "{text:?} and {other:?}");
        }
        for block in &layout.blocks {
            assert!(block.rect.holds(&bounds) || !block.rect.overlaps(&bounds), "{text:?} and {block:?}");
        }
        for mark in &layout.marks {
            assert!(!mark.bounds().overlaps(&bounds), "{text:?} and {mark:?}");
        }
    }
    for wire in &layout.wires {
        for part in wire.points.windows(2) {
            let line = line(part[0], part[1]);
            assert!(line.w == 0.0 || line.h == 0.0, "{wire:?} is oblique");
            assert!(all.holds(&line), "{wire:?} stands out");
            let crossed = |b: &&Block| b.part != Part::Dropped && inside(&b.rect).overlaps(&line);
            assert!(!layout.blocks.iter().any(|b| crossed(&b)), "{wire:?} crosses a box");
            for text in &layout.texts {
                assert!(!inside(&text.bounds()).overlaps(&line), "{wire:?} crosses {text:?}");
            }
        }
    }
}

#[test]
fn nothing_overlaps_in_any_drawing() {
    use TowerKind::{Decoder, Encoder};
    const SMALL: (usize, usize) = (64, 3_232);
    const LARGE: (usize, usize) = (16_384, 1_234_567_890);
    const HUGE: (usize, usize) = (usize::MAX, usize::MAX);
    let every = |n: usize, step: usize| (0..n).map(|b| b % step == step - 1).collect::<Vec<_>>();
    for sizes in [SMALL, LARGE, HUGE] {
        for state in [State::Initial, State::Trained, State::Fixed] {
            let stack = |kind, kept: &[bool]| stack(kind, kept, sizes, state);
            let towers = [
                vec![stack(Encoder, &every(2, 1)), stack(Decoder, &every(2, 1))],
                vec![stack(Encoder, &every(24, 1)), stack(Decoder, &every(24, 1))],
                vec![stack(Encoder, &every(24, 2)), stack(Decoder, &every(2, 1))],
                vec![stack(Encoder, &every(1, 1)), stack(Decoder, &every(30, 3))],
                vec![stack(Encoder, &every(3, 4)), stack(Decoder, &every(3, 4))],
                vec![stack(Decoder, &every(12, 4))],
                vec![stack(Encoder, &[])],
                vec![stack(Encoder, &every(4, 1)), stack(Decoder, &every(3, 1)), stack(Decoder, &every(6, 2))],
            ];
            for stacks in towers {
                for (merge, distilled) in [(None, false), (Some(state), false), (None, true), (Some(state), true)] {
                    let ladder = ladder(stacks.clone(), merge, distilled);
                    holds_its_invariants(&ladder, Arrangement::Beside);
                    holds_its_invariants(&ladder, Arrangement::Stacked);
                }
            }
        }
    }
}

#[test]
fn a_drawing_is_as_narrow_as_a_phone_where_towers_are_stacked() {
    let stacks = vec![
        stack(TowerKind::Encoder, &[true; 24], (1024, 196_864), State::Trained),
        stack(TowerKind::Decoder, &[true; 24], (1024, 262_528), State::Trained),
    ];
    let layout = Layout::new(&ladder(stacks, None, false), Arrangement::Stacked);
    assert!(layout.width <= 354.0, "{}", layout.width);
}

/// Inspects a folder with a log of these lines.
fn inspected_run(lines: &str, format: &str) -> (tempfile::TempDir, Output) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("metrics.jsonl"), lines).expect("a log");
    let output = lstc(&["inspect", text(folder.path()), "--format", format]);
    (folder, output)
}

/// A log of three epochs of ten steps, in which one gate opens and one does not.
fn log() -> String {
    let mut lines = String::new();
    for step in 1..=30_u64 {
        let (epoch, loss) = ((step - 1) / 10 + 1, 3.0 / step as f64);
        let (open, shut) = (0.5 + 0.004 * step as f64, 0.5 - 0.001 * step as f64);
        lines += &format!(
            "{{\"step\":{step},\"epoch\":{epoch},\"loss\":{loss},\"lr\":0.1,\"gates\":{{\"decoder.side_gate_params.0\":{shut},\
             \"encoder.side_gate_params.<0>\":{open}}}}}\n"
        );
        if step % 10 == 0 {
            let accuracy = [0.5, 0.9, 0.8][epoch as usize - 1];
            lines += &format!(
                "{{\"step\":{step},\"epoch\":{epoch},\"eval_loss\":{loss},\"eval_accuracy\":{accuracy},\"seconds\":1}}\n"
            );
        }
    }
    lines
}

#[test]
fn a_run_has_curves() {
    let (_folder, page) = inspected_run(&log(), "html");
    assert!(page.status.success(), "{}", stderr(&page));
    let page = stdout(&page);
    for part in
        ["<h2>Loss</h2>", "<h2>Accuracy</h2>", "<h2>Gates</h2>", "90.0 %", "accuracy of epoch 2", ">evaluation<"]
    {
        assert!(page.contains(part), "`{part}` is not in the page");
    }
    assert_eq!(page.matches("<path class=\"curve").count(), 5);
    assert!(!page.contains("<0>") && page.contains("&lt;0&gt;"), "a name from a file is text");
    // Every point lies within its chart.
    for path in page.split("<path class=\"curve").skip(1) {
        let data = path.split("d=\"").nth(1).and_then(|d| d.split('"').next()).expect("a path");
        for point in data.split(['M', 'L']).filter(|p| !p.is_empty()) {
            let (x, y) = point.split_once(' ').expect("two numbers");
            let [x, y] = [x, y].map(|n| n.parse::<f64>().expect("a number"));
            assert!((0.0..=720.0).contains(&x) && (0.0..=250.0).contains(&y), "{point}");
        }
    }
}

#[test]
fn a_run_says_when_its_gates_opened() {
    let (_folder, told) = inspected_run(&log(), "json");
    let told: serde_json::Value = serde_json::from_str(&stdout(&told)).expect("JSON");
    assert_eq!((told["best"]["epoch"].as_u64(), told["epochs"].as_array().map(Vec::len)), (Some(2), Some(3)));
    let mean: f64 = (1..=10).map(|step| 3.0 / f64::from(step)).sum::<f64>() / 10.0;
    assert!((told["epochs"][0]["loss"].as_f64().expect("a mean") - mean).abs() < 1e-12);
    // 0.504 + 0.05 is reached at 0.5 + 0.004 * 14.
    assert_eq!((&told["gates"][0]["opened"], &told["gates"][1]["opened"]), (&serde_json::Value::Null, &14.into()));
    let (_folder, told) = inspected_run(&(log() + "{\"step\": 31, \"ep"), "text");
    let told = stdout(&told);
    for part in [
        "30 steps in 3 epochs",
        "epoch 2, step 20: loss 0.1500, accuracy 90.0 %",
        "1 damaged line",
        "not yet",
        "step 14",
    ] {
        assert!(told.contains(part), "`{part}` is not in: {told}");
    }
    let (_folder, none) = inspected_run("", "text");
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("has no steps yet"), "{}", stderr(&none));
}
