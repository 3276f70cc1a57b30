//! Recognition on real exports, on the same with every name scrambled, and on models that must be refused.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lstc_graph::{Graph, load};
use lstc_models::{Anatomy, SublayerKind, recognise};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases")
}

/// Folders that hold a `model.onnx`.
fn models() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(cases())
        .expect("the cases are committed")
        .map(|e| e.expect("a readable folder").path().join("model.onnx"))
        .filter(|p| p.exists())
        .collect();
    found.sort();
    assert!(found.len() >= 10, "only {} cases", found.len());
    found
}

/// Everything of an anatomy that does not depend on names.
fn describe(graph: &Graph, anatomy: &Anatomy) -> String {
    let mut text = String::new();
    for tower in &anatomy.towers {
        let _ = writeln!(text, "{} width {} eps {:e}", tower.kind, tower.width, tower.final_norm.epsilon);
        for (index, block) in tower.blocks.iter().enumerate() {
            let _ = write!(text, "  block {index}:");
            for sublayer in &block.sublayers {
                let _ = match &sublayer.kind {
                    SublayerKind::Attention(a) => write!(
                        text,
                        " {:?}({} x {}, scale {}, rows {:?}, context {})",
                        a.kind,
                        a.heads,
                        a.head_width,
                        a.scale,
                        a.relative().map(|r| r.rows),
                        a.context.is_some()
                    ),
                    SublayerKind::FeedForward(f) => {
                        write!(text, " ff({} {} gated {})", f.width(), f.activation.name(), f.is_gated())
                    }
                };
            }
            let _ = writeln!(text);
        }
    }
    let head = &anatomy.head;
    let _ = writeln!(text, "head {} scale {:.6} tied {}", head.linear.outputs, head.scale, head.tied);
    let _ = graph;
    text
}

/// Renames every value and node.
fn scramble(graph: &mut Graph) {
    for (index, id) in graph.value_ids().enumerate() {
        graph.rename(id, &format!("v{}", (index * 7919) % 1_000_003)).expect("scrambled names are unique");
    }
    graph.rename_nodes(|index| format!("n{}", (index * 104_729) % 1_000_003));
}

#[test]
fn every_case_is_recognised_whatever_its_names() {
    for path in models() {
        let mut graph = load(&path).unwrap_or_else(|e| panic!("{e}"));
        let anatomy = recognise(&graph).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        let plain = describe(&graph, &anatomy);
        println!("{}\n{plain}", path.display());
        scramble(&mut graph);
        let anatomy = recognise(&graph).unwrap_or_else(|e| panic!("scrambled {}:\n{e}", path.display()));
        assert_eq!(plain, describe(&graph, &anatomy), "{}", path.display());
    }
}

fn refusals(name: &str) -> Vec<String> {
    let graph = load(&cases().join("refused").join(name)).unwrap_or_else(|e| panic!("{e}"));
    let refused = recognise(&graph).err().unwrap_or_else(|| panic!("{name} must be refused"));
    let texts: Vec<String> = refused.0.iter().map(ToString::to_string).collect();
    println!("{name}:\n  {}", texts.join("\n  "));
    texts
}

#[test]
fn what_is_not_understood_is_refused() {
    for name in [
        "unknown_activation",
        "extra_consumer",
        "missing_residual",
        "two_heads",
        "gelu_scale",
        "bert",
        "no_cross_attention",
        "folded_position_bias",
    ] {
        refusals(&format!("{name}.onnx"));
    }
}
