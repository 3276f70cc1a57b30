//! Sample inputs: random tokens, a batch with padding, labels some of which do not count.

use std::collections::HashMap;

use lstc_graph::{DType, Dim, Graph, Uses, ValueId};
use lstc_models::{InputRole, model_inputs};
use lstc_passes::Module;
use lstc_runtime::Tensor;
use ndarray::{ArrayD, IxDyn};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Sizes given to symbolic dimensions, in the order in which they are met: a small batch, then unequal lengths; and others, all
/// of them different.
const SIZES: [[usize; 6]; 2] = [[2, 9, 5, 7, 3, 4], [3, 4, 7, 2, 6, 5]];

/// What an input holds.
#[derive(Clone, Copy)]
enum Content {
    Tokens {
        vocabulary: usize,
    },
    Labels {
        vocabulary: usize,
    },
    Mask,
    /// A mask whose ones mark padding.
    Padding,
}

/// Inputs of the model by name, with `labels`, at the first sizes.
pub fn inputs(module: &Module, seed: u64) -> anyhow::Result<Vec<(String, Tensor)>> {
    sized(module, seed, SIZES[0])
}

/// As [`inputs`], with one size for all that is free: a file may call its batch and its lengths by one name.
pub fn square(module: &Module, seed: u64) -> anyhow::Result<Vec<(String, Tensor)>> {
    sized(module, seed, [4; 6])
}

/// As [`inputs`], at all sizes.
pub fn sizes(module: &Module, seed: u64) -> anyhow::Result<Vec<Vec<(String, Tensor)>>> {
    SIZES.iter().map(|sizes| sized(module, seed, *sizes)).collect()
}

fn sized(module: &Module, seed: u64, sizes: [usize; 6]) -> anyhow::Result<Vec<(String, Tensor)>> {
    let (graph, anatomy) = (&module.graph, &module.anatomy);
    let rows = |tower: &lstc_models::Tower| tower.table.dims(graph)[0];
    let roles = model_inputs(graph, anatomy);
    let marks_padding = |input| roles.iter().any(|known| known.value == input && known.role == InputRole::Padding);
    let given = graph.inputs.iter().filter(|v| !module.is_new(**v)).map(|input| {
        let tower = anatomy.towers.iter().find(|t| t.tokens == *input);
        let mask = if marks_padding(*input) { Content::Padding } else { Content::Mask };
        (*input, tower.map_or(mask, |t| Content::Tokens { vocabulary: rows(t) }))
    });
    let vocabulary = anatomy.head.linear.outputs.min(rows(anatomy.last()));
    let labels = module.labels.map(|labels| (labels, Content::Labels { vocabulary }));
    fill(graph, given.chain(labels), seed, sizes)
}

/// All inputs, by name, of a graph whose anatomy is not known: tokens if they index a table, otherwise masks.
pub fn inputs_of_graph(graph: &Graph, seed: u64) -> anyhow::Result<Vec<(String, Tensor)>> {
    let uses = graph.uses();
    let content = |input: &ValueId| match table_rows(graph, &uses, *input) {
        Some(vocabulary) => (*input, Content::Tokens { vocabulary }),
        None => (*input, Content::Mask),
    };
    fill(graph, graph.inputs.iter().map(content), seed, SIZES[0])
}

/// Rows of the smallest table that an input's elements index.
fn table_rows(graph: &Graph, uses: &Uses, input: ValueId) -> Option<usize> {
    const MOVES: [&str; 6] = ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
    let mut open = vec![input];
    let mut rows: Option<usize> = None;
    while let Some(value) = open.pop() {
        for (id, slot) in uses.of(value) {
            let node = graph.node(*id);
            let table = node.input(0).and_then(|table| graph.weight(table)).map(lstc_graph::Weight::dims);
            match (slot, table) {
                (1, Some([count, _])) if node.is("Gather") => rows = Some(rows.map_or(*count, |r| r.min(*count))),
                (0, _) if MOVES.iter().any(|op| node.is(op)) => open.extend(node.output(0)),
                _ => {}
            }
        }
    }
    rows
}

fn fill(
    graph: &Graph,
    inputs: impl Iterator<Item = (ValueId, Content)>,
    seed: u64,
    of_symbols: [usize; 6],
) -> anyhow::Result<Vec<(String, Tensor)>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sizes: HashMap<String, usize> = HashMap::new();
    let mut filled = Vec::new();
    for (input, content) in inputs {
        let value = graph.value(input);
        let shape = shape(graph, input, &mut sizes, of_symbols);
        let mut index = 0;
        let last = shape.last().copied().unwrap_or(1);
        let mut next = || {
            let (row, column) = (index / last, index % last);
            index += 1;
            let drawn = rng.next_u64();
            let token = |vocabulary: usize| (drawn % vocabulary.max(1) as u64) as i64;
            match content {
                Content::Tokens { vocabulary } => token(vocabulary),
                Content::Labels { .. } if column + 1 == last && row % 2 == 1 => -100,
                Content::Labels { vocabulary } => token(vocabulary),
                Content::Mask => i64::from(is_token(row, column, last)),
                Content::Padding => i64::from(!is_token(row, column, last)),
            }
        };
        let array = ArrayD::from_shape_simple_fn(IxDyn(&shape), &mut next);
        filled.push((value.name.clone(), cast(&array, value.dtype, &value.name)?));
    }
    Ok(filled)
}

/// The later rows end in padding.
fn is_token(row: usize, column: usize, length: usize) -> bool {
    row == 0 || column + 2 < length.max(3)
}

fn shape(graph: &Graph, input: ValueId, sizes: &mut HashMap<String, usize>, of_symbols: [usize; 6]) -> Vec<usize> {
    let dims = graph.shape(input).unwrap_or_default();
    dims.iter()
        .map(|dim| match dim {
            Dim::Value(v) => *v as usize,
            symbol => {
                let next = of_symbols[sizes.len() % of_symbols.len()];
                *sizes.entry(lstc_graph::dim_text(symbol)).or_insert(next)
            }
        })
        .collect()
}

fn cast(array: &ArrayD<i64>, dtype: Option<DType>, name: &str) -> anyhow::Result<Tensor> {
    Ok(match dtype {
        Some(DType::I64) => array.clone().into(),
        Some(DType::I32) => array.mapv(|v| v as i32).into(),
        Some(DType::F32) => array.mapv(|v| v as f32).into(),
        Some(DType::Bool) => array.mapv(|v| v != 0).into(),
        other => anyhow::bail!("input `{name}` has type {other:?}, for which no samples can be drawn"),
    })
}

/// The side network at a point where nothing is degenerate: the initial values, perturbed, so that gates, biases and the
/// small projections all matter.
pub fn side(module: &Module, seed: u64) -> Vec<(String, ArrayD<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x51de);
    let mut uniform = || (rng.next_u64() >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
    let shaken = |(p, initial): (&lstc_passes::Parameter, &lstc_passes::Initial)| {
        let scale = match p.dims[..] {
            [_, fan_in] => (12.0 / fan_in as f32).sqrt() * 0.5,
            _ => 0.2,
        };
        (p.name.clone(), initial.value().mapv(|v| v + scale * uniform()))
    };
    module.parameters.iter().zip(&module.initial).map(shaken).collect()
}
