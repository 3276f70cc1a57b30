"""What tools make of an exported model: optimised, converted, quantised, laid out in other files.

Every function takes the path of a model, and the path to write to.
"""

import numpy as np
import onnx
import onnxruntime
import onnxsim
from onnx import TensorProto
from onnxconverter_common import float16
from onnxruntime.quantization import (
    CalibrationDataReader, QuantFormat, QuantType, matmul_nbits_quantizer, quantize_dynamic, quantize_static,
)
from onnxruntime.transformers import float16 as ort_float16
from onnxruntime.transformers import optimizer

from backbones import cases

BASIC = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
EXTENDED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def save(proto, path):
    path.write_bytes(proto.SerializeToString(deterministic=True))
    cases.strip(path)


def ort_optimised(level):
    """What ONNX Runtime's own optimiser saves."""
    def apply(source, target):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        cases.strip(target)
    return apply


def simplified(source, target):
    proto, fine = onnxsim.simplify(onnx.load(source))
    assert fine, source
    save(proto, target)


def transformers_optimised(heads, hidden):
    """onnxruntime.transformers.optimizer: fused norms, attention, activations."""
    def apply(source, target):
        model = optimizer.optimize_model(str(source), model_type="t5", num_heads=heads, hidden_size=hidden, opt_level=0)
        save(model.model, target)
    return apply


def half_by_converter(source, target):
    """onnxconverter_common's f16 inside f32 inputs and outputs.

    It leaves the target of a Cast to f32 as it is, and so writes a model that no runtime loads; people repair that by hand.
    """
    proto = onnx.load(source)
    casts = {node.name for node in proto.graph.node if node.op_type == "Cast"}
    proto = float16.convert_float_to_float16(proto, keep_io_types=True)
    for node in proto.graph.node:
        if node.name in casts and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
    save(proto, target)


def half_by_ort(source, target):
    """The converter that onnxruntime.transformers has."""
    save(ort_float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def dynamic(weight_type, per_channel, gather):
    """8-bit weights, activations quantised at run time."""
    def apply(source, target):
        kinds = ["MatMul", "Gather"] if gather else ["MatMul"]
        # A bit less for the weights: their products then fit the 16 bits that older CPUs add them in.
        quantize_dynamic(source, target, op_types_to_quantize=kinds, per_channel=per_channel,
                         reduce_range=weight_type == "qint8", extra_options={"DefaultTensorType": TensorProto.FLOAT},
                         weight_type=QuantType.QInt8 if weight_type == "qint8" else QuantType.QUInt8)
        cases.strip(target)
    return apply


class Batches(CalibrationDataReader):
    """A few random batches for the inputs of a model."""

    def __init__(self, path, vocab, hidden):
        draw = np.random.default_rng(0)
        self.rest = []
        for _ in range(4):
            feeds = {}
            for value in onnx.load(path, load_external_data=False).graph.input:
                target = "decoder_input_ids" if path.name == "model.onnx" else "input_ids"
                length = 6 if value.name == target and "encoder" not in path.name else 9
                if value.name == "encoder_hidden_states":
                    feeds[value.name] = draw.standard_normal((3, 9, hidden), np.float32)
                elif "mask" in value.name:
                    feeds[value.name] = np.ones((3, length), np.int64)
                else:
                    feeds[value.name] = draw.integers(2, vocab, (3, length))
            self.rest.append(feeds)

    def get_next(self):
        return self.rest.pop() if self.rest else None


def static(form, per_channel, vocab, hidden):
    """8-bit weights and activations, scales from calibration."""
    def apply(source, target):
        quantize_static(source, target, Batches(source, vocab, hidden), per_channel=per_channel,
                        reduce_range=True, quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
                        op_types_to_quantize=["MatMul"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        cases.strip(target)
    return apply


def nbits(bits, block, symmetric, accuracy=None, form=QuantFormat.QOperator):
    """MatMulNBits, or with QDQ a blocked DequantizeLinear before each MatMul."""
    def apply(source, target):
        quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
            onnx.load(source), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=accuracy,
            quant_format=form,
        )
        quantizer.process()
        save(quantizer.model.model, target)
    return apply


def external(one_file):
    """Weights beside the model: in one file, or in a file each."""
    def apply(source, target):
        onnx.save_model(onnx.load(source), str(target), save_as_external_data=True, all_tensors_to_one_file=one_file,
                        location=f"{target.name}.data" if one_file else None, size_threshold=256)
    return apply


def initialisers_as_inputs(source, target):
    """The form of IR version 3: every initializer is also a graph input."""
    proto = onnx.load(source)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    save(proto, target)


def then(*steps):
    """One tool after another, over files beside the target."""
    def apply(source, target):
        for index, step in enumerate(steps[:-1]):
            between = target.with_name(f"between_{index}_{target.name}")
            step(source, between)
            source = between
        steps[-1](source, target)
        for index in range(len(steps) - 1):
            target.with_name(f"between_{index}_{target.name}").unlink()
    return apply
