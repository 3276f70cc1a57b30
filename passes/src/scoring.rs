//! The inference graph in two, for evaluation: what the input text alone decides, and what the tokens given out decide.
//!
//! ```text
//! encode: source tokens -> whatever the decoder reads of them, its cross-attention's keys and values among it
//! decode: that, and target tokens -> log p(label) of each label, and the likeliest next token at each position
//! ```
//!
//! One run of `encode` serves for every label that is scored and every token that is generated.

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Origin, Role, ValueId};

use crate::loss::IGNORED;
use crate::sizes::measure;

/// Names of what `decode` gives.
pub const LOG_LIKELIHOOD: &str = "log_likelihood";
pub const NEXT_TOKEN: &str = "next_token";

/// The two graphs.
pub struct Scoring {
    pub encode: Graph,
    /// Inputs are those of the model that `encode` does not take, what `encode` gives, and `labels` i64
    /// `[batch, length]`. Outputs are [`LOG_LIKELIHOOD`], f32, 0 where the label is -100, and [`NEXT_TOKEN`], i64, both
    /// `[batch, length]`.
    pub decode: Graph,
}

/// Splits an inference graph at the inputs that only the last tower reads.
///
/// # Errors
/// A graph without an output of logits `[batch, length, vocabulary]`, or with an input named `labels`.
pub fn scoring(infer: &Graph, late: &[ValueId]) -> Result<Scoring, String> {
    let mut graph = infer.clone();
    let logits = *graph.outputs.first().ok_or("the graph has no output")?;
    let shape = graph.shape(logits).unwrap_or_default();
    let [batch, length, _] = &shape[..] else { return Err(format!("logits have {} dimensions, not 3", shape.len())) };
    let shape = [batch.clone(), length.clone()];
    let labels = graph.add_input("labels", DType::I64, &shape, Role::Frozen)?;
    let b = Builder::new(&mut graph, Origin::pass("scoring"));
    b.scope("scoring");
    let logarithms = b.op("LogSoftmax", &[logits], Attributes::none().int("axis", -1));
    let counts = b.op("Not", &[b.op("Equal", &[labels, b.i64(IGNORED)], Attributes::none())], Attributes::none());
    let column = [batch.clone(), length.clone(), Dim::Value(1)];
    let index = b.shaped(b.unsqueeze(b.select(counts, labels, b.i64(0)), 2), &column);
    let picked = b.op("GatherElements", &[logarithms, index], Attributes::none().int("axis", 2));
    let picked = b.reduce_sum(b.shaped(picked, &column), &[2], false);
    let likelihood = b.named(b.shaped(b.select(counts, picked, b.f32(0.0)), &shape), LOG_LIKELIHOOD);
    let next = b.op("ArgMax", &[logits], Attributes::none().int("axis", -1).int("keepdims", 0));
    let next = b.named(b.shaped(next, &shape), NEXT_TOKEN);
    graph.outputs = vec![likelihood, next];
    let late: Vec<ValueId> = late.iter().copied().chain([labels]).collect();
    measure_early(&mut graph, &late);
    let (encode, decode) = graph.split(&late);
    Ok(Scoring { encode, decode })
}

/// Exporters take the size of the batch from any input, be it the decoder's tokens. Measured at an early input, nothing of the
/// encoder waits for them.
fn measure_early(graph: &mut Graph, late: &[ValueId]) {
    let waits = graph.dependents(late.iter().copied());
    let early: Vec<ValueId> = graph.inputs.iter().copied().filter(|v| !late.contains(v)).collect();
    let made = graph.node_ids().flat_map(|id| graph.node(id).outputs.iter().flatten().copied());
    let sizes: Vec<ValueId> = made.filter(|v| waits[v.index()]).collect();
    measure(graph, &sizes, &early, &Origin::pass("scoring"));
}
