"""Models that no exporter writes as such: small changes to an export, each for one form that a compiler must know.

Functions as in variants.py: the path of a model, and the path to write to.
"""

import onnx
from onnx import helper

from variants import save


def causal_attention(source, target):
    """The decoder's own Attention (opset 23) with `is_causal` and the position bias, in place of bias and mask in one.

    PyTorch writes attn_mask = Where(allowed, position bias, lowest); the decoder's `allowed` is causal alone.
    """
    proto = onnx.load(source)
    makers = {output: node for node in proto.graph.node for output in node.output}
    changed = 0
    for node in proto.graph.node:
        if node.op_type != "Attention":
            continue
        masked = makers[node.input[3]]
        assert masked.op_type == "Where", masked.op_type
        if stands_behind(makers, masked.input[0], "LessOrEqual"):
            node.input[3] = masked.input[1]
            next(a for a in node.attribute if a.name == "is_causal").i = 1
            changed += 1
    assert changed > 0 or source.name == "encoder_model.onnx"
    drop_unused(proto.graph)
    onnx.checker.check_model(proto)
    save(proto, target)


def stands_behind(makers, value, op_type):
    """Whether an operator is among the ancestors of a value."""
    seen, rest = set(), [value]
    while rest:
        name = rest.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        if node.op_type == op_type:
            return True
        seen.add(name)
        rest += node.input
    return False


def drop_unused(graph):
    """Takes out nodes that nothing reads."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        unused = [node for node in graph.node if not read.intersection(node.output)]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def integer_minimum_in_float(source, target):
    """Opset 11 has Min for floats alone; PyTorch's exporter writes it for integers all the same."""
    proto = onnx.load(source)
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "Min":
            nodes.append(node)
            continue
        narrow = [f"{node.name}_float_{index}" for index in range(len(node.input))]
        nodes += [helper.make_node("Cast", [name], [cast], to=onnx.TensorProto.FLOAT, name=cast)
                  for name, cast in zip(node.input, narrow)]
        nodes.append(helper.make_node("Min", narrow, [f"{node.name}_float"], name=node.name))
        nodes.append(helper.make_node("Cast", [f"{node.name}_float"], list(node.output), to=onnx.TensorProto.INT64,
                                      name=f"{node.name}_integer"))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    save(proto, target)


def makers_of(graph):
    return {output: node for node in graph.node for output in node.output}


def put(graph, old, *new):
    """New nodes in place of an old one."""
    position = list(graph.node).index(old)
    graph.node.remove(old)
    for offset, node in enumerate(new):
        graph.node.insert(position + offset, node)


def chain(makers, value, *path):
    """The makers of a value and of their first inputs, which must be these operators."""
    nodes = []
    for op_type in path:
        nodes.append(makers[value])
        assert nodes[-1].op_type == op_type, (nodes[-1].op_type, path)
        value = nodes[-1].input[0]
    return nodes


def multi_head_attention(heads):
    """com.microsoft's MultiHeadAttention, from dynamo's: Reshape, Transpose, MatMul, Add, Add, Softmax, MatMul, and back."""
    def apply(source, target):
        proto = onnx.load(source)
        makers = makers_of(proto.graph)
        for node in list(proto.graph.node):
            if node.op_type != "Reshape" or makers.get(node.input[0]) is None:
                continue
            turned = makers[node.input[0]]
            mixed = makers.get(turned.input[0])
            if turned.op_type != "Transpose" or mixed is None or mixed.op_type != "MatMul":
                continue
            softmax, masked, biased, scores = chain(makers, mixed.input[0], "Softmax", "Add", "Add", "MatMul")
            query, keys, values = (chain(makers, value, "Transpose", "Reshape")[1].input[0]
                                   for value in (*scores.input, mixed.input[1]))
            bias = f"{softmax.name}_bias"
            put(proto.graph, node,
                helper.make_node("Add", [biased.input[1], masked.input[1]], [bias], name=bias),
                helper.make_node("MultiHeadAttention", [query, keys, values, "", "", bias],
                                 list(node.output), name=f"{softmax.name}_attention", domain="com.microsoft",
                                 num_heads=heads, scale=1.0))
        drop_unused(proto.graph)
        assert not any(node.op_type == "Softmax" for node in proto.graph.node)
        save_with_microsoft(proto, target)
    return apply


def save_with_microsoft(proto, target):
    drop_unused(proto.graph)
    read = {name for node in proto.graph.node for name in node.input}
    for tensor in list(proto.graph.initializer):
        if tensor.name not in read:
            proto.graph.initializer.remove(tensor)
    del proto.graph.value_info[:]
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    save(proto, target)
