//! Real exports, damaged: whatever is left of one is recognised or refused, within a second, without a panic and
//! without memory that a number in the file asked for.

#[path = "../../graph/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lstc_graph::onnx::proto::{ModelProto, TensorProto};
use lstc_graph::{load, load_bytes};
use lstc_models::recognise;
use prost::Message;

use common::{MESSAGES, count_messages, memory};

const LIMIT: Duration = Duration::from_secs(1);
const MEMORY: u64 = 200;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }
}

/// What became of damaged files.
#[derive(Debug)]
struct Tally {
    recognised: usize,
    refused: usize,
    unreadable: usize,
    longest: Duration,
    before: u64,
}

impl Tally {
    fn new() -> Tally {
        count_messages();
        let before = memory("VmRSS");
        Tally { recognised: 0, refused: 0, unreadable: 0, longest: Duration::ZERO, before }
    }

    fn add(&mut self, read: impl FnOnce() -> Result<lstc_graph::Graph, lstc_graph::LoadError>, what: &str) {
        let start = Instant::now();
        match read().map(|mut graph| recognise(&mut graph)) {
            Ok(Ok(_)) => self.recognised += 1,
            Ok(Err(refused)) => {
                assert!(
                    !refused.refusals.is_empty() && !refused.to_string().is_empty(),
                    "{what}: refused without a reason"
                );
                self.refused += 1;
            }
            Err(error) => {
                assert!(
                    !error.problems.is_empty() && error.to_string().starts_with("cannot read `"),
                    "{what}: {error}"
                );
                self.unreadable += 1;
            }
        }
        let took = start.elapsed();
        assert!(took < LIMIT, "{what}: {took:?}");
        self.longest = self.longest.max(took);
    }

    fn finish(self, what: &str) {
        let peak = memory("VmHWM");
        println!("{what}: {self:?}, {peak} MiB at most");
        assert!(peak < self.before + MEMORY, "{} MiB became {peak} MiB", self.before);
        assert_eq!(MESSAGES.load(Ordering::SeqCst), 0, "a panic message was printed");
    }
}

/// A copy of a committed case.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases").join(name);
    for file in ["model.onnx", "model.onnx.data"] {
        if case.join(file).exists() {
            std::fs::copy(case.join(file), folder.path().join(file)).expect("a writable folder");
        }
    }
    let path = folder.path().join("model.onnx");
    let bytes = std::fs::read(&path).expect("the case is committed");
    (folder, path, bytes)
}

const CASES: [&str; 2] = ["relu_torchscript", "external_weights"];

#[test]
fn truncated() {
    let mut tally = Tally::new();
    for name in CASES {
        let (_folder, path, bytes) = copy(name);
        for part in 0..64 {
            std::fs::write(&path, &bytes[..bytes.len() * part / 64]).expect("a writable folder");
            tally.add(|| load(&path), &format!("{part}/64 of {name}"));
        }
        std::fs::write(&path, &bytes).expect("a writable folder");
        let data = path.with_extension("onnx.data");
        if data.exists() {
            let whole = std::fs::read(&data).expect("it was just copied");
            for part in 0..64 {
                std::fs::write(&data, &whole[..whole.len() * part / 64]).expect("a writable folder");
                tally.add(|| load(&path), &format!("{part}/64 of the data of {name}"));
            }
            std::fs::remove_file(&data).expect("a writable folder");
            tally.add(|| load(&path), "without its data");
        }
    }
    assert_eq!((tally.recognised, tally.refused), (0, 0), "a part of a model is none");
    tally.finish("truncated");
}

/// Damages `count` copies of a case and reads each; its data file, if any, stays beside it.
fn damaged(what: &str, count: usize, mut damage: impl FnMut(&mut Random, &mut Vec<u8>)) {
    let mut tally = Tally::new();
    for name in CASES {
        let (_folder, path, bytes) = copy(name);
        let mut random = Random(42);
        for index in 0..count / CASES.len() {
            let mut copy = bytes.clone();
            damage(&mut random, &mut copy);
            tally.add(|| load_bytes(copy.into(), &path), &format!("{what}, number {index} of {name}"));
        }
    }
    assert_eq!(tally.recognised + tally.refused + tally.unreadable, count);
    tally.finish(what);
}

fn flip(random: &mut Random, bytes: &mut [u8]) {
    let at = random.below(bytes.len());
    bytes[at] ^= (1 + random.below(255)) as u8;
}

#[test]
fn one_byte_anywhere() {
    damaged("one byte anywhere", 1000, |random, bytes| flip(random, bytes));
}

#[test]
fn bytes_in_the_headers() {
    damaged("one to eight bytes in the first and last 4 KB", 400, |random, bytes| {
        let end = bytes.len() - 4096;
        for _ in 0..=random.below(8) {
            let part = if random.below(2) == 0 { &mut bytes[..4096] } else { &mut bytes[end..] };
            flip(random, part);
        }
    });
}

#[test]
fn fields_that_lie() {
    const NUMBERS: [i64; 12] =
        [i64::MIN, i64::MAX, -1, 0, 1, 2, 3, -3, 1 << 31, 1 << 40, i32::MAX as i64, i32::MIN as i64];
    const OPERATORS: [&str; 12] = [
        "Add",
        "Mul",
        "Reshape",
        "Transpose",
        "Softmax",
        "MatMul",
        "Identity",
        "Expand",
        "Where",
        "Cast",
        "Gather",
        "Concat",
    ];
    damaged("fields of the message", 600, |random, bytes| {
        let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
        let graph = model.graph.as_mut().expect("the case is a model");
        for _ in 0..=random.below(3) {
            let nodes = graph.node.len();
            let node = random.below(nodes);
            let other = random.below(nodes);
            let number = NUMBERS[random.below(NUMBERS.len())];
            match random.below(8) {
                0 => {
                    // Small integer constants: shapes, axes, permutations.
                    let small = |t: &&mut TensorProto| {
                        t.data_type == Some(7) && t.raw_data.as_ref().is_some_and(|b| (8..=512).contains(&b.len()))
                    };
                    let inline = graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut());
                    let mut constants: Vec<_> = graph.initializer.iter_mut().chain(inline).filter(small).collect();
                    let Some(constant) = (!constants.is_empty()).then(|| random.below(constants.len())) else {
                        continue;
                    };
                    let constant = &mut constants[constant];
                    let mut raw = constant.raw_data.clone().expect("only those that have it").to_vec();
                    raw[..8].copy_from_slice(&number.to_le_bytes());
                    constant.raw_data = Some(raw.into());
                }
                1 => {
                    for attribute in &mut graph.node[node].attribute {
                        attribute.i = attribute.i.map(|_| number);
                        if let Some(first) = attribute.ints.first_mut() {
                            *first = number;
                        }
                    }
                }
                2 => graph.node[node].op_type = Some(OPERATORS[random.below(OPERATORS.len())].to_owned()),
                3 => {
                    let name = graph.node[other].output[0].clone();
                    if let Some(input) = graph.node[node].input.first_mut() {
                        *input = name;
                    }
                }
                4 => graph.node[node].input.reverse(),
                5 => drop(graph.node.remove(node)),
                6 => {
                    let weight = random.below(graph.initializer.len());
                    graph.initializer[weight].dims.reverse();
                }
                _ => graph.node[node].input.truncate(1),
            }
        }
        *bytes = model.encode_to_vec();
    });
}
