//! How many operands, results and which attributes an operator takes, of the operators that transformers use.
//!
//! ONNX Runtime refuses a model with a node that its operator's schema does not allow, whatever the node is for. The table has
//! what the opsets from 11 on allow together, so that nothing sound is refused; an operator that is not listed is not judged.

use crate::ir::{Graph, MICROSOFT, Node, NodeId};

/// An operator's operands, at least and at most, its results at most, and its attributes.
struct Schema {
    ops: &'static [&'static str],
    operands: (usize, usize),
    results: usize,
    attributes: &'static [&'static str],
}

const MANY: usize = usize::MAX;

const fn schema(
    ops: &'static [&'static str],
    operands: (usize, usize),
    results: usize,
    attributes: &'static [&'static str],
) -> Schema {
    Schema { ops, operands, results, attributes }
}

const SCHEMAS: &[Schema] = &[
    schema(
        &[
            "Abs",
            "Ceil",
            "Cos",
            "Erf",
            "Exp",
            "Floor",
            "Identity",
            "Log",
            "Neg",
            "Not",
            "Reciprocal",
            "Relu",
            "Round",
            "Sigmoid",
            "Sign",
            "Sin",
            "Size",
            "Sqrt",
            "Tanh",
        ],
        (1, 1),
        1,
        &[],
    ),
    schema(
        &[
            "Add",
            "And",
            "Div",
            "Equal",
            "Expand",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "MatMul",
            "Mul",
            "Or",
            "Pow",
            "Sub",
            "Tile",
            "Xor",
        ],
        (2, 2),
        1,
        &[],
    ),
    schema(&["Max", "Mean", "Min", "Sum"], (1, MANY), 1, &[]),
    schema(&["Where"], (3, 3), 1, &[]),
    schema(&["Clip"], (1, 3), 1, &[]),
    schema(&["Gelu"], (1, 1), 1, &["approximate"]),
    schema(&["MatMulInteger"], (2, 4), 1, &[]),
    schema(&["QLinearMatMul"], (8, 8), 1, &[]),
    schema(&["Gemm"], (2, 3), 1, &["alpha", "beta", "transA", "transB"]),
    schema(&["Softmax", "LogSoftmax", "Flatten"], (1, 1), 1, &["axis"]),
    schema(&["Gather", "GatherElements"], (2, 2), 1, &["axis"]),
    schema(&["Concat"], (1, MANY), 1, &["axis"]),
    schema(&["Split"], (1, 2), MANY, &["axis", "num_outputs", "split"]),
    schema(&["Reshape"], (2, 2), 1, &["allowzero"]),
    schema(&["Transpose"], (1, 1), 1, &["perm"]),
    schema(&["Squeeze", "Unsqueeze"], (1, 2), 1, &["axes"]),
    schema(&["Slice"], (3, 5), 1, &[]),
    schema(&["Cast"], (1, 1), 1, &["round_mode", "saturate", "to"]),
    schema(&["CastLike"], (2, 2), 1, &["round_mode", "saturate"]),
    schema(&["Shape"], (1, 1), 1, &["end", "start"]),
    schema(&["ConstantOfShape"], (1, 1), 1, &["value"]),
    schema(&["Range"], (3, 3), 1, &["stash_type"]),
    schema(
        &["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"],
        (1, 2),
        1,
        &["axes", "keepdims", "noop_with_empty_axes"],
    ),
    schema(&["LayerNormalization"], (2, 3), 3, &["axis", "epsilon", "stash_type"]),
    schema(&["RMSNormalization"], (2, 2), 1, &["axis", "epsilon", "stash_type"]),
    schema(&["SimplifiedLayerNormalization"], (2, 2), 2, &["axis", "epsilon", "stash_type"]),
    schema(&["Dropout"], (1, 3), 2, &["ratio", "seed"]),
    schema(&["DynamicQuantizeLinear"], (1, 1), 3, &[]),
    schema(&["QuantizeLinear"], (2, 3), 1, &["axis", "block_size", "output_dtype", "precision", "saturate"]),
    schema(&["DequantizeLinear"], (2, 3), 1, &["axis", "block_size", "output_dtype"]),
    schema(&["Trilu"], (1, 2), 1, &["upper"]),
    schema(&["CumSum"], (2, 2), 1, &["exclusive", "reverse"]),
    schema(&["Mod"], (2, 2), 1, &["fmod"]),
    schema(
        &["Attention"],
        (3, 7),
        4,
        &["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"],
    ),
];

/// ONNX Runtime's own operators, which take more attributes with each release: only their operands are judged.
const OF_RUNTIME: &[Schema] = &[
    schema(&["FusedMatMul"], (2, 2), 1, &[]),
    schema(&["SkipSimplifiedLayerNormalization"], (3, 4), 4, &[]),
    schema(&["DynamicQuantizeMatMul"], (3, 5), 1, &[]),
    schema(&["MatMulIntegerToFloat"], (4, 7), 1, &[]),
    schema(&["FastGelu"], (1, 2), 1, &[]),
    schema(&["QuickGelu"], (1, 1), 1, &[]),
];

/// Whatever a node has that its operator does not allow, in the order of the graph.
pub fn misuses(graph: &Graph) -> Vec<(NodeId, String)> {
    graph.node_ids().filter_map(|id| misuse(graph.node(id)).map(|reason| (id, reason))).collect()
}

fn misuse(node: &Node) -> Option<String> {
    let (schemas, is_own) = match node.domain.as_str() {
        MICROSOFT => (OF_RUNTIME, true),
        _ if node.is_default_domain() => (SCHEMAS, false),
        _ => return None,
    };
    let schema = schemas.iter().find(|schema| schema.ops.contains(&node.op.as_str()))?;
    let (least, most) = schema.operands;
    let op = &node.op;
    let given = node.inputs.len();
    if given > most {
        return Some(format!("has {given} operands, but {op} takes at most {most}"));
    }
    if let Some(missing) = (0..least).find(|slot| node.input(*slot).is_none()) {
        return Some(format!("has no operand {missing}, but {op} takes at least {least} operands"));
    }
    let results = node.outputs.len();
    if results > schema.results {
        return Some(format!("has {results} results, but {op} gives at most {}", schema.results));
    }
    let unknown = node.attributes.iter().map(|(name, _)| name).find(|name| !schema.attributes.contains(&name.as_str()));
    let unknown = unknown.filter(|_| !is_own)?;
    Some(format!("has an attribute `{unknown}`, which {op} does not have"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    fn found(nodes: &str) -> Vec<String> {
        let text = format!("(x: f32[2, 2], y: f32[2, 2]) {{ {nodes} }} -> z");
        let graph = parse(&text, 17).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        misuses(&graph).into_iter().map(|(_, reason)| reason).collect()
    }

    #[test]
    fn what_the_schema_does_not_allow_is_named() {
        assert_eq!(found("z = MatMul(x, y, x)"), ["has 3 operands, but MatMul takes at most 2"]);
        assert_eq!(found("z = Relu<slope=2>(x)"), ["has an attribute `slope`, which Relu does not have"]);
        assert_eq!(found("z, w = Softmax(x)"), ["has 2 results, but Softmax gives at most 1"]);
    }

    #[test]
    fn what_it_allows_is_not() {
        let nodes =
            "a = Softmax<axis=-1>(x)  b = Gemm<transB=1>(a, y)  c = Clip(b)  d = Max(c, x, y)  z = Concat<axis=0>(d)";
        assert_eq!(found(nodes), [""; 0]);
    }
}
