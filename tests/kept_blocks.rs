//! Blocks that are chosen by importance: those that write nothing go first.

use std::path::{Path, PathBuf};

use lstc::rewrite::{compile, open};
use lstc_graph::{Graph, ValueId, Weight};
use lstc_models::{Anatomy, Linear, SublayerKind};
use lstc_passes::ladder::kept::{Choice, choose};
use lstc_passes::options::{BlockCounts, Init, Method, Options, TowerName};

/// A model of two encoder blocks and three decoder blocks.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/two_and_three_blocks/model.onnx")
}

fn keep(count: usize) -> Method {
    Method { keep_blocks: Some(BlockCounts::Each(count)), ..Method::default() }
}

fn scale(graph: &mut Graph, value: ValueId, factor: f32) {
    let weight = graph.weight(value).expect("a constant").clone();
    let values: Vec<f32> = weight.to_f32().expect("floats").iter().map(|v| v * factor).collect();
    graph.replace_weight(value, Weight::from_f32(weight.dims(), &values));
}

/// What a block's sublayers write with, and what they read with.
fn matrices(anatomy: &Anatomy, tower: usize, block: usize) -> Vec<(Linear, Linear)> {
    let of = |kind: &SublayerKind| match kind {
        SublayerKind::Attention(a) => (a.o.clone(), a.v.clone()),
        SublayerKind::FeedForward(f) => (f.outer.clone(), f.inner[0].clone()),
    };
    anatomy.towers[tower].blocks[block].sublayers.iter().map(|s| of(&s.kind)).collect()
}

fn decoder(graph: &Graph, anatomy: &Anatomy, count: usize) -> Choice {
    choose(graph, anatomy, &keep(count)).pop().expect("a choice for the decoder")
}

#[test]
fn a_block_that_writes_next_to_nothing_goes_first() {
    for silent in 0..3 {
        let (mut graph, anatomy) = open(&model().into()).expect("a committed case");
        for (out, _) in matrices(&anatomy, 1, silent) {
            scale(&mut graph, out.weight.value().expect("a constant"), 1e-3);
        }
        let chosen = decoder(&graph, &anatomy, 2);
        let others: Vec<usize> = (0..3).filter(|b| *b != silent).collect();
        assert_eq!(chosen.kept, others, "{chosen:?}");
        assert!(chosen.scores[silent] < 1e-5, "{chosen:?}");
        assert!((chosen.scores.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{chosen:?}");
    }
}

#[test]
fn scale_that_moves_from_one_matrix_to_another_changes_nothing() {
    let (mut graph, anatomy) = open(&model().into()).expect("a committed case");
    let before = decoder(&graph, &anatomy, 1);
    for (out, reads) in matrices(&anatomy, 1, 0) {
        scale(&mut graph, out.weight.value().expect("a constant"), 0.125);
        scale(&mut graph, reads.weight.value().expect("a constant"), 8.0);
    }
    assert_eq!(decoder(&graph, &anatomy, 1), before, "powers of two are exact");
}

#[test]
fn blocks_that_are_alike_are_kept_from_the_last() {
    let (mut graph, anatomy) = open(&model().into()).expect("a committed case");
    for block in 0..3 {
        for (out, _) in matrices(&anatomy, 1, block) {
            scale(&mut graph, out.weight.value().expect("a constant"), 0.0);
        }
    }
    assert_eq!(decoder(&graph, &anatomy, 2).kept, [1, 2]);
}

#[test]
fn a_tower_that_has_fewer_keeps_all_and_nothing_is_read() {
    let (graph, anatomy) = open(&model().into()).expect("a committed case");
    let chosen = choose(&graph, &anatomy, &keep(3));
    let told: Vec<_> = chosen.iter().map(|c| (c.asked, c.kept.clone(), c.scores.is_empty())).collect();
    assert_eq!(told, [(3, vec![0, 1], true), (3, vec![0, 1, 2], true)]);
}

#[test]
fn towers_choose_for_themselves_whatever_the_initial_values() {
    let mut options = Options::default();
    options.method.reduction = 4;
    options.method.init = Init::Random;
    options.method.keep_blocks = Some(BlockCounts::ByTower([(TowerName::Decoder, 1)].into()));
    let (module, _) = compile(model(), options, None, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
    let kept: Vec<usize> = module.plan.towers.iter().map(|t| t.blocks.len()).collect();
    assert_eq!((kept, module.plan.choices.len()), (vec![2, 1], 1));
}

#[test]
fn a_choice_that_cannot_be_is_refused() {
    let problems = |change: &dyn Fn(&mut Method)| {
        let mut options = Options::default();
        options.method.reduction = 4;
        change(&mut options.method);
        match compile(model(), options, None, |_, _| ()) {
            Ok(_) => panic!("it is taken"),
            Err(error) => format!("{error:#}"),
        }
    };
    let none = problems(&|m| m.keep_blocks = Some(BlockCounts::Each(0)));
    assert!(none.contains("a tower keeps at least one block"), "{none}");
    let both = problems(&|m| {
        m.keep_blocks = Some(BlockCounts::Each(1));
        m.blocks.insert(TowerName::Decoder, vec![0]);
    });
    assert!(both.contains("method.blocks lists the kept blocks of the decoder"), "{both}");
}
