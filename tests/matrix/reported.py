"""Packs models that users reported, and writes what PyTorch makes of Ladder Side-Tuning on each.

    python reported.py DIR     DIR has a folder for each model of MODELS, as it was reported

The models are T5s of one block a tower with weights of their own, so their archives hold all of their weights. make.py keeps
what is written here, and lists it.
"""

import sys
import tempfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

import archives
import expectations
import quantised
import runs
from backbones import Backbone, cases

HERE = Path(__file__).resolve().parent
PREFIX = "reported_"
BACKBONE = Backbone("reported", layers=(1, 1), heads=2, seed=51)

# Each with its arithmetic, and whether torch 2.6's weights lie beside it; else they are those of `states_given_back`.
MODELS = {
    "dynamo_export": ("f32", True),  # torch 2.6's dynamo: products over flattened tokens and heads
    "dynamo_raw": ("f32", True),  # optimize=False: shapes behind casts, constants that are no constants yet
    "opset_converted": ("f32", False),  # onnx.version_converter: Softmax of opset 11 in opset 17
    "states_given_back": ("f32", False),  # Optimum 1.7's pair: the decoder gives the encoder's states back
    "optimum_quantised": ("quantised", False),  # Optimum's quantiser: products of two activations too
    "optimum_quantised_tied": ("quantised", False),  # the same with a tied head that is quantised as the model runs
}
FLOAT_SOURCE = "states_given_back"


def entries():
    """The models' entries in matrix.json."""
    return [{"name": PREFIX + name, "arithmetic": arithmetic, "backbone": PREFIX + name, "expected": PREFIX + name}
            for name, (arithmetic, _) in MODELS.items()]


def with_usual_names(path):
    """A model's bytes; its inputs and its output are called as those of the other models are."""
    proto = onnx.load(path)
    if path.name != "model.onnx":
        return proto.SerializeToString()
    usual = dict(zip((value.name for value in proto.graph.input), ("input_ids", "attention_mask", "decoder_input_ids")))
    usual[proto.graph.output[0].name] = "logits"
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.name = usual.get(value.name, value.name)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [usual.get(name, name) for name in names]
    return proto.SerializeToString()


def weights_of_pair(folder):
    """The state dict behind two TorchScript exports: norms and tables by name, matrices by the node that reads them."""
    found = {}
    for path in runs.files_of(folder):
        proto = onnx.load(path)
        tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in proto.graph.initializer}
        found |= {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        for node in proto.graph.node:
            if node.op_type == "MatMul" and node.input[1] in tensors:
                name = node.name.strip("/").removeprefix("model/").removesuffix("/MatMul").replace("/", ".")
                found[f"{name}.weight"] = tensors[node.input[1]].T
    return found


def model_of(weights):
    model = T5ForConditionalGeneration(cases.backbone_config(BACKBONE)).eval()
    shared = weights.get("shared.weight", weights.get("lm_head.weight"))
    weights = dict(weights) | dict.fromkeys(
        ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), shared)
    model.load_state_dict(weights)
    return model.requires_grad_(False)


def head_weight(folder):
    """[vocabulary, width] of the product that `quantize_dynamic` left of the head, or None where it is quantised as it runs."""
    proto = onnx.load(runs.files_of(folder)[-1])
    makers = {node.output[0]: node for node in proto.graph.node}
    product = makers[makers[makers["logits"].input[0]].input[0]]
    assert product.op_type == "MatMulInteger", product.op_type
    name = product.input[1].removesuffix("_quantized")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    if product.input[1] not in weights:
        return None
    stored, zero = weights[product.input[1]].astype(float), weights[product.input[3]].astype(float)
    return torch.from_numpy((stored - zero) * weights[f"{name}_scale"].astype(float)).T


def expected(folder, source, model, arithmetic, batch):
    expectations.build = lambda _backbone: model
    taps, logits = expectations.taps_of(BACKBONE, model, batch)
    head = None
    if arithmetic == "quantised":
        names = quantised.tap_names(source, batch, taps)
        _, taps = runs.run(folder, batch, names)
        head = head_weight(folder)
    else:
        found = runs.run(folder, batch)
        assert torch.allclose(found.double(), logits, atol=1e-4), (found - logits).abs().max()
    return expectations.expected(BACKBONE, taps, head)


def main(reported):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in MODELS:
            (folder / name).mkdir()
            for path in (reported / name).iterdir():
                data = with_usual_names(path) if path.suffix == ".onnx" else path.read_bytes()
                (folder / name / path.name).write_bytes(data)
        write(folder)


def write(reported):
    batch = cases.draw_batch(BACKBONE)
    source = reported / FLOAT_SOURCE
    for name, (arithmetic, has_weights) in MODELS.items():
        folder = reported / name
        weights = load_file(folder / "weights.safetensors") if has_weights else weights_of_pair(source)
        found = expected(folder, source, model_of(weights), arithmetic, batch)
        expectations.write(found, HERE / "expected" / f"{PREFIX}{name}.safetensors")
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "weights.safetensors"}
        archives.write_zip(HERE / "models" / f"{PREFIX}{name}.zip", files)
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
