"""Writes the models of tests/runtime.rs beside this file: `python make.py` (needs the package onnx)."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent


def model(name, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def tensor(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


# Two outputs of two inputs, one dimension of them free.
pair = ["batch", 2]
add = model(
    "add",
    [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
    [tensor("a", TensorProto.FLOAT, pair), tensor("b", TensorProto.FLOAT, pair)],
    [tensor("sum", TensorProto.FLOAT, pair), tensor("difference", TensorProto.FLOAT, pair)],
)
onnx.save(add, HERE / "add.onnx")

# Every element type that the host holds, and one that it does not, passed through.
types = {
    "f32": TensorProto.FLOAT,
    "f64": TensorProto.DOUBLE,
    "f16": TensorProto.FLOAT16,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
through = model(
    "types",
    [helper.make_node("Identity", [name], [f"{name}.out"]) for name in types]
    + [helper.make_node("Cast", ["i32"], ["u8.out"], to=TensorProto.UINT8)],
    [tensor(name, dtype, [None]) for name, dtype in types.items()],
    [tensor(f"{name}.out", dtype, [None]) for name, dtype in types.items()]
    + [tensor("u8.out", TensorProto.UINT8, [None])],
)
onnx.save(through, HERE / "types.onnx")

# A weight in a file of its own.
scale = model(
    "scale",
    [helper.make_node("Mul", ["x", "weight"], ["y"])],
    [tensor("x", TensorProto.FLOAT, [3])],
    [tensor("y", TensorProto.FLOAT, [3])],
    [numpy_helper.from_array(np.array([1, 10, 100], np.float32), "weight")],
)
(HERE / "scale.data").unlink(missing_ok=True)
onnx.save(scale, HERE / "scale.onnx", save_as_external_data=True, location="scale.data", size_threshold=0)
