//! Whether a device runs what it was asked to run.
//!
//! If a provider has no kernel for a node, ONNX Runtime runs it on the CPU, and silently copies its operands there and its results
//! back in every run.

use anyhow::anyhow;
use lstc_base::report::Hinted;
use lstc_graph::{DType, Graph};
use lstc_runtime::{Device, Placed, Session};

/// Operators that compute sizes, for nodes that ONNX Runtime adds itself.
const OF_SIZES: [&str; 14] = [
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Range",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
];

/// The most nodes that a refusal lists.
const MOST_LISTED: usize = 4;

/// Makes sure that of a session on a device, the CPU runs only the arithmetic of sizes.
///
/// # Errors
/// The other operators that it runs, with the first of their nodes.
pub fn check(graph: &Graph, session: &Session, device: Device) -> anyhow::Result<()> {
    let left: Vec<Placed> = session.left_to_cpu()?.into_iter().filter(|node| !is_of_sizes(graph, node)).collect();
    let Some(first) = left.first() else { return Ok(()) };
    let mut operators: Vec<&str> = left.iter().map(|node| node.operator.as_str()).collect();
    operators.sort_unstable();
    operators.dedup();
    let nodes: Vec<String> = left
        .iter()
        .take(MOST_LISTED)
        .map(|node| format!("\n  {} `{}`{}", node.operator, node.name, types(graph, node)))
        .collect();
    let more =
        if left.len() > MOST_LISTED { format!("\n  and {} more", left.len() - MOST_LISTED) } else { String::new() };
    let error = anyhow!(
        "ONNX Runtime has no kernel on {device} for {} of the model's nodes, and would run them on the CPU: {}{}{more}",
        left.len(),
        operators.join(", "),
        nodes.concat(),
    );
    Err(Hinted::new(error, hint(first)).into())
}

fn hint(first: &Placed) -> String {
    const OF_INTEGERS: [&str; 6] = [
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "QLinearMatMul",
        "QLinearAdd",
    ];
    if OF_INTEGERS.contains(&first.operator.as_str()) {
        return "products of integers run only on the CPU: rewrite the model with --backbone bf16, or with --backbone int4 for \
                the least memory"
            .to_owned();
    }
    "rewrite the model with --backbone bf16 or fp16, or train it with --device cpu".to_owned()
}

fn types(graph: &Graph, placed: &Placed) -> String {
    let Some(id) = graph.node_ids().find(|id| graph.node(*id).name == placed.name) else { return String::new() };
    let types = graph.node(id).inputs.iter().flatten().filter_map(|v| graph.value(*v).dtype).map(DType::name);
    let types: Vec<&str> = types.collect();
    if types.is_empty() { String::new() } else { format!(" of {}", types.join(", ")) }
}

/// True for a node that gives integers or booleans, in one row at most.
fn is_of_sizes(graph: &Graph, placed: &Placed) -> bool {
    let Some(id) = graph.node_ids().find(|id| graph.node(*id).name == placed.name) else {
        return OF_SIZES.contains(&placed.operator.as_str());
    };
    graph.node(id).outputs.iter().flatten().all(|v| {
        let is_exact = graph.value(*v).dtype.is_some_and(|dtype| !dtype.is_float());
        is_exact && graph.shape(*v).is_none_or(|shape| shape.len() <= 1)
    })
}
