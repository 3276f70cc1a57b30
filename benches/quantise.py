"""ONNX Runtime's own dynamic int8 of an exported model: python benches/quantise.py t5.onnx int8.onnx --per-channel

Only MatMuls with a constant operand are quantised. `--prepare` runs ONNX Runtime's own pre-processing first, which makes
a constant of a tied head's transpose, so that the head is quantised too.
"""

import argparse
import logging
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantise(model, output, per_channel, prepare):
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        if prepare:
            prepared = Path(folder, "prepared.onnx")
            options = {"save_as_external_data": True, "all_tensors_to_one_file": True}
            quant_pre_process(model, prepared, skip_symbolic_shape=True, **options)
            model = prepared
        quantize_dynamic(
            model, output, op_types_to_quantize=["MatMul"], per_channel=per_channel, weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True}, use_external_data_format=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    quantise(args.model, args.output, args.per_channel, args.prepare)


if __name__ == "__main__":
    main()
