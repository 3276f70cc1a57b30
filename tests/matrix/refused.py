"""Models that run, and that the compiler must refuse: each holds one thing that no rewrite can see through."""

import onnx
from onnx import TensorProto, helper

from backbones import cases

STREAM = "encoder/block.0/layer.1/Add"


def beside_the_stream(nodes_of):
    """An export with nodes in the residual stream behind encoder block 0: `nodes_of(edit, in, out)`."""
    edit = cases.Edit(cases.SMALL)
    stream = edit.node(STREAM)
    value = stream.output[0]
    last = edit.insert(stream, *nodes_of(edit, value, "behind"))
    edit.redirect(value, "behind", last)
    return edit.proto


def loop():
    """The stream goes once through a Loop."""
    def nodes(edit, value, out):
        kept = helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)
        doubled = helper.make_tensor_value_info("turned", TensorProto.FLOAT, None)
        flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Neg", ["kept"], ["turned"])], "body",
            [helper.make_tensor_value_info("turn", TensorProto.INT64, []), flag, kept],
            [helper.make_tensor_value_info("still", TensorProto.BOOL, []), doubled],
        )
        return [helper.make_node("Loop", [edit.constant("turns", 2), edit.constant("first", True), value], [out],
                                 name="twice", body=body)]
    return beside_the_stream(nodes)


def branch():
    """What the stream holds depends on a sum of the tokens."""
    def nodes(edit, value, out):
        arms = {
            f"{arm}_branch": helper.make_graph(
                [helper.make_node(op, [value], [f"{arm}_out"])], arm, [],
                [helper.make_tensor_value_info(f"{arm}_out", TensorProto.FLOAT, None)])
            for arm, op in (("then", "Identity"), ("else", "Neg"))
        }
        return [
            helper.make_node("ReduceSum", ["input_ids"], ["token_sum"], keepdims=0),
            helper.make_node("Greater", ["token_sum", edit.constant("many", 0)], ["is_many"]),
            helper.make_node("If", ["is_many"], [out], name="either", **arms),
        ]
    return beside_the_stream(nodes)


def sequence():
    """The stream passes through a sequence."""
    return beside_the_stream(lambda edit, value, out: [
        helper.make_node("SequenceConstruct", [value], ["one_tensor"], name="collect"),
        helper.make_node("SequenceAt", ["one_tensor", edit.constant("at", 0)], [out]),
    ])


def custom_operator():
    """An operator of a domain that only its author's runtime knows."""
    proto = beside_the_stream(lambda edit, value, out: [
        helper.make_node("Sharpen", [value], [out], name="sharpen", domain="example.operators"),
    ])
    proto.opset_import.append(helper.make_opsetid("example.operators", 1))
    return proto


def string_input():
    """The tokens come as text."""
    proto = cases.Edit(cases.SMALL).proto
    tokens = next(value for value in proto.graph.input if value.name == "input_ids")
    tokens.type.tensor_type.elem_type = TensorProto.STRING
    proto.graph.node.insert(0, helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64, name="parse"))
    for node in list(proto.graph.node)[1:]:
        node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
    return proto


# The operator, or the input, that a refusal must name.
REFUSED = {loop: "Loop", branch: "If", sequence: "SequenceConstruct", custom_operator: "Sharpen", string_input: "input_ids"}


def write(make, path):
    proto = make()
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
