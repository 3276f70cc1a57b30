"""What a quantised model computes with: its own hidden states, and the LM head's weight as it is after dequantisation."""

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

import runs


def tap_names(folder, batch, taps):
    """For each tap of the PyTorch model, the file and the value of the float export that equal it."""
    names = {}
    for path in runs.files_of(folder):
        made = [output for node in onnx.load(path).graph.node for output in node.output if output]
        _, values = runs.run(folder, batch, {name: (path.name, name) for name in made})
        for tap, wanted in taps.items():
            for name, value in values.items():
                if value.shape == wanted.shape and torch.allclose(value.double(), wanted, atol=1e-4):
                    names.setdefault(tap, (path.name, name))
                    break
    assert len(names) == len(taps), set(taps) - set(names)
    return names


def head_name(source):
    """The initializer that the float export multiplies the final hidden states with: [width, vocabulary]."""
    proto = onnx.load(runs.files_of(source)[-1])
    makers = {node.output[0]: node for node in proto.graph.node}
    node = makers["logits"]
    assert node.op_type == "MatMul", node.op_type
    return node.input[1]


def head_weight(source, folder):
    """[vocabulary, width], or None where the quantiser left the head alone."""
    name = head_name(source)
    proto = onnx.load(runs.files_of(folder)[-1])
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    if name in weights or any(name in node.output for node in proto.graph.node):
        return None
    blocked = next((node for node in proto.graph.node
                    if node.output[0] == "logits" and node.op_type == "MatMulNBits"), None)
    if blocked is not None:
        return by_identity(proto, blocked, weights)
    narrow = next((node for node in proto.graph.node
                   if node.op_type == "DequantizeLinear" and node.input[0].startswith(f"{name}_DQ_Q4")), None)
    if narrow is not None:
        return by_running(proto, narrow, weights)
    stored, scale, zero = (numpy_helper.to_array(weights[f"{name}_{part}"])
                           for part in ("quantized", "scale", "zero_point"))
    return torch.from_numpy((stored.astype(np.float64) - zero) * scale.astype(np.float64)).T


def by_identity(proto, node, weights):
    """A MatMulNBits without its rounding of activations, on the identity."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "accuracy_level"}
    alone = helper.make_node(node.op_type, ["identity", *node.input[1:]], ["found"], domain=node.domain, **attributes)
    width = attributes["K"]
    return run_node(proto, alone, weights, {"identity": np.eye(width, dtype=np.float32)}).T


def by_running(proto, node, weights):
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.output[0] = "found"
    return run_node(proto, alone, weights, {}).T


def run_node(proto, node, weights, feeds):
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name="found")],
                              [weights[name] for name in node.input if name in weights])
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return torch.from_numpy(runs.session_of(model).run(["found"], feeds)[0]).double()
