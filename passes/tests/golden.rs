//! What each pass makes of one small model, as text: the lines of the graph's listing that it adds and takes away. A change of a
//! pass shows here first, as a difference that can be read. Beside each stands a model or an option that the pass must refuse.
//!
//! `INSTA_UPDATE=always cargo test -p lstc-passes --test golden` writes what is found; look at the difference before committing it.

use std::collections::HashMap;
use std::path::Path;

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Origin, Role, listing, load};
use lstc_models::{Anatomy, recognise};
use lstc_passes::differentiate::Differentiate;
use lstc_passes::options::{BlockCounts, Gate, Init, Merge, Options, Precision, TowerName};
use lstc_passes::{Module, Pass, Problem, ladder_side_tuning};

/// A T5 of one block in each tower, with one head.
fn model(case: &str) -> (Graph, Anatomy) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases").join(case).join("model.onnx");
    let mut graph = load(&path).expect("the case is committed");
    let anatomy = recognise(&mut graph).unwrap_or_else(|refused| panic!("{refused}"));
    (graph, anatomy)
}

fn options() -> Options {
    let mut options = Options::default();
    options.method.reduction = 4;
    options.method.init = Init::Random;
    options
}

/// Lines that one text has more often than another, with a mark, in its order.
fn more(of: &str, than: &str, mark: char) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    than.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    let mut text = String::new();
    for line in of.lines() {
        match counts.get_mut(line).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => text.push_str(&format!("{mark} {line}\n")),
        }
    }
    text
}

/// What a pass changes in the listing.
fn changed(pass: &str, case: &str, options: Options) -> String {
    let (graph, anatomy) = model(case);
    let mut before = listing(&graph);
    let mut module = Module::new(graph, anatomy, options).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut found = String::new();
    ladder_side_tuning()
        .run(&mut module, Some(pass), |name, module| {
            let after = listing(&module.graph);
            if name == pass {
                found = more(&before, &after, '-') + &more(&after, &before, '+');
            }
            before = after;
        })
        .unwrap_or_else(|error| panic!("{error}"));
    found
}

/// Why a pass refuses a model, which is changed before the passes run.
fn refused(pass: &str, options: Options, change: impl FnOnce(&mut Module)) -> Vec<String> {
    let (graph, anatomy) = model("unoptimised_sdpa");
    let mut module = Module::new(graph, anatomy, options).unwrap_or_else(|problems| panic!("{problems:?}"));
    change(&mut module);
    let error = ladder_side_tuning().run(&mut module, Some(pass), |_, _| ()).expect_err("it is refused");
    assert_eq!(error.pass, pass, "{error}");
    error.problems.iter().map(Problem::to_string).collect()
}

fn named(name: &'static str) -> impl Fn(&mut Module) {
    move |module| {
        let mask = module.graph.find("attention_mask").expect("the case has a mask");
        module.graph.rename(mask, name).expect("the name is free");
    }
}

#[test]
fn freeze() {
    insta::assert_snapshot!(changed("freeze", "unoptimised_sdpa", options()));
    let problems = refused("freeze", options(), named("labels"));
    assert_eq!(problems, ["`labels`: an input of the model has a name of the training graphs: rename it"]);
}

#[test]
fn fold() {
    let mut fixed = options();
    (fixed.sizes.batch, fixed.sizes.source_length, fixed.sizes.target_length) = (Some(2), Some(3), Some(2));
    insta::assert_snapshot!(changed("fold", "unoptimised_sdpa", fixed.clone()));
    assert_eq!(changed("fold", "unoptimised_sdpa", options()), "");
    let (graph, anatomy) = model("single_head_static");
    let mut module = Module::new(graph, anatomy, fixed).expect("the options are in range");
    let error = ladder_side_tuning().run(&mut module, Some("fold"), |_, _| ()).expect_err("it has other sizes");
    let problems: Vec<String> = error.problems.iter().map(Problem::to_string).collect();
    insta::assert_snapshot!("fold_refused", problems.join("\n"));
}

#[test]
fn tap() {
    insta::assert_snapshot!(changed("tap", "unoptimised_sdpa", options()));
    // The taps of a model in half precision are read in f32, which is a node of the pass.
    let mut merged = options();
    merged.method.merge_last = true;
    merged.loss.distill = 0.5;
    let (graph, anatomy) = model("unoptimised_sdpa");
    let mut module = Module::new(graph, anatomy, merged).expect("the options are in range");
    ladder_side_tuning().run(&mut module, Some("tap"), |_, _| ()).expect("it is tapped");
    let taps: Vec<String> = module
        .taps
        .iter()
        .map(|tap| format!("{} {} {}", tap.tower, tap.point, module.graph.value(tap.value).name))
        .collect();
    insta::assert_snapshot!("taps", taps.join("\n"));
}

#[test]
fn prune() {
    for (init, name) in [(Init::Random, "prune_random"), (Init::MagnitudeConsistent, "prune_consistent")] {
        let mut options = options();
        options.method.init = init;
        assert_eq!(changed("prune", "unoptimised_sdpa", options.clone()), "", "it changes no graph");
        let (graph, anatomy) = model("unoptimised_sdpa");
        let mut module = Module::new(graph, anatomy, options).expect("the options are in range");
        ladder_side_tuning().run(&mut module, Some("prune"), |_, _| ()).expect("it is cut");
        let initial: Vec<String> = module
            .planned()
            .zip(&module.initial)
            .map(|(planned, initial)| format!("{} {:?} {}", planned.name, initial.dims(), digest(&initial.value())))
            .collect();
        insta::assert_snapshot!(name, initial.join("\n"));
    }
}

/// Sum and largest element, rounded: enough to see that values changed.
fn digest(values: &ndarray::ArrayD<f32>) -> String {
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    let largest = values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    format!("sum {sum:.3} largest {largest:.3}")
}

#[test]
fn side_stack() {
    insta::assert_snapshot!(changed("side-stack", "unoptimised_sdpa", options()));
    // Names of parameters are the interface's: the backbone's own give way, but an input cannot.
    let problems = refused("freeze", options(), named("side_final_upsample.weight"));
    assert!(problems[0].starts_with("`side_final_upsample.weight`: an input of the model"), "{problems:?}");
}

#[test]
fn ladder() {
    insta::assert_snapshot!(changed("ladder", "unoptimised_sdpa", options()));
    let mut other = options();
    other.method.down = "pool".parse().expect("a down-projection");
    other.method.gate = Gate::ScheduleLinear;
    other.method.merge = Merge::After;
    other.method.free_blocks = Some(BlockCounts::Each(1));
    let added = changed("ladder", "unoptimised_sdpa", other);
    let scopes: Vec<&str> = added.lines().filter_map(|line| line.strip_prefix("+ ")?.split('/').next()).collect();
    let mut order = scopes.clone();
    order.dedup();
    insta::assert_snapshot!("ladder_order", order.join("\n"));
    let mut wrong = options();
    wrong.method.blocks.insert(TowerName::Decoder, vec![3]);
    let (graph, anatomy) = model("unoptimised_sdpa");
    let problems = Module::new(graph, anatomy, wrong).err().expect("there is no such block");
    assert_eq!(problems[0].to_string(), "the decoder has blocks 0 to 0: block 3 cannot be kept");
}

#[test]
fn head() {
    insta::assert_snapshot!(changed("head", "unoptimised_sdpa", options()));
}

#[test]
fn loss() {
    insta::assert_snapshot!(changed("loss", "unoptimised_sdpa", options()));
}

#[test]
fn differentiate() {
    insta::assert_snapshot!(changed("differentiate", "unoptimised_sdpa", options()));
    // An operator without a rule between a parameter and the loss.
    let (graph, anatomy) = model("unoptimised_sdpa");
    let mut module = Module::new(graph, anatomy, options()).expect("the options are in range");
    ladder_side_tuning().run(&mut module, Some("loss"), |_, _| ()).expect("it has a loss");
    let input = *module.side_outputs.last().expect("the ladder has an end");
    let readers = module.graph.uses().of(input).to_vec();
    let strange = {
        let b = Builder::new(&mut module.graph, Origin::pass("head"));
        let strange = b.op("Sin", &[input], Attributes::none());
        let shape = b.shape(input).expect("it has a shape");
        b.shaped(strange, &shape)
    };
    for (reader, place) in readers {
        module.graph.reconnect(reader, place, strange);
    }
    let problems = Differentiate.run(&mut module).expect_err("Sin has no rule");
    assert!(problems.iter().any(|problem| problem.what == "Sin has no gradient rule"), "{problems:?}");
}

#[test]
fn optimizer() {
    insta::assert_snapshot!(changed("optimizer", "unoptimised_sdpa", options()));
    let taken = |module: &mut Module| {
        module.graph.add_input("adam.m/0", DType::F32, &[Dim::Value(1)], Role::Frozen).expect("the name is free");
    };
    let problems = refused("freeze", options(), taken);
    assert_eq!(problems, ["`adam.m/0`: an input of the model has a name of the training graphs: rename it"]);
}

#[test]
fn quantise() {
    let mut int8 = options();
    int8.backbone.precision = Precision::Int8;
    insta::assert_snapshot!(changed("quantise", "unoptimised_sdpa", int8.clone()));
    assert_eq!(changed("quantise", "unoptimised_sdpa", options()), "");
    int8.backbone.kept = Some(vec!["nothing".to_owned()]);
    let problems = refused("quantise", int8, |_| ());
    assert_eq!(
        problems,
        ["backbone.kept names `nothing`, which is not the result of a product with a constant matrix"]
    );
}

#[test]
fn quantise_head() {
    let mut quantised = options();
    quantised.backbone.quantise_head = true;
    insta::assert_snapshot!(changed("quantise-head", "unoptimised_sdpa", quantised));
    assert_eq!(changed("quantise-head", "unoptimised_sdpa", options()), "");
}
