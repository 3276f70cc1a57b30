"""The backbones of the matrix, by name: a configuration and weights from a seed.

Weights lie on a grid: multiples of 1/128, rounded to bf16. So they are the same numbers in f32, f16 and bf16, one
expectation serves all three, and they compress well.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MT5Config, MT5ForConditionalGeneration, T5ForConditionalGeneration, UMT5Config, UMT5ForConditionalGeneration,
)


def load_cases():
    """tests/cases/make.py as a module: the independent side network."""
    path = Path(__file__).resolve().parent.parent / "cases" / "make.py"
    spec = importlib.util.spec_from_file_location("cases_make", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load_cases()


@dataclass
class Backbone(cases.Case):
    """A case of tests/cases at the matrix's sizes, and what only the matrix varies."""

    d_model: int = 32
    d_kv: int = 8
    d_ff: int = 48
    heads: int = 3
    vocab: int = 64
    reduction: int = 4
    sizes: tuple = (3, 9, 6)
    family: str = "t5"  # t5 | mt5 | umt5
    activation: str = ""  # in place of the one that `gated` implies
    scaled: bool = True  # a tied head's d_model^-0.5
    padded_vocab: int = 0  # rows of the LM head beyond the embedding's

    @property
    def head_scale(self):
        return self.d_model**-0.5 if self.tied and self.scaled else 1.0


LAYERS = {("relu", "equal"): (2, 2), ("gated", "equal"): (2, 2), ("relu", "unequal"): (1, 2), ("gated", "unequal"): (3, 1)}

BACKBONES = {
    f"{kind}_{head}_{size}": Backbone(
        f"{kind}_{head}_{size}", layers=LAYERS[kind, size], gated=kind == "gated", tied=head == "tied", seed=seed
    )
    for seed, (kind, head, size) in enumerate(
        ((kind, head, size) for kind in ("relu", "gated") for head in ("tied", "untied") for size in ("equal", "unequal")),
        start=21,
    )
}
BACKBONES |= {
    backbone.name: backbone
    for backbone in [
        Backbone("umt5", family="umt5", gated=True, tied=False, tables="all", seed=31),
        Backbone("byt5", layers=(3, 1), gated=True, tied=False, buckets=(32, 128), seed=32),
        Backbone("mt5", family="mt5", gated=True, tied=False, seed=33),
        Backbone("unscaled", scaled=False, seed=34),
        Backbone("gelu_erf", activation="gelu", seed=35),
        Backbone("gelu_tanh", activation="gelu_pytorch_tanh", seed=36),
        Backbone("gelu_new", activation="gelu_new", seed=37),
        Backbone("silu", gated=True, activation="silu", seed=38),
        Backbone("buckets_16_20", buckets=(16, 20), sizes=(2, 27, 14), seed=39),
        Backbone("buckets_64_256", buckets=(64, 256), sizes=(2, 40, 36), seed=40),
        Backbone("sdpa", attention="sdpa", gated=True, seed=46),
        Backbone("static_sdpa", attention="sdpa", gated=True, tied=False, seed=47),
        Backbone("static_sdpa_full", attention="sdpa", layers=(1, 2), padded=False, seed=48),
        Backbone("one_head", heads=1, seed=41),
        Backbone("five_heads", heads=5, seed=42),
        Backbone("four_heads", heads=4, gated=True, seed=45),  # d_kv * heads = d_model, which ONNX Runtime's fusions ask for
        Backbone("padded_vocab", tied=False, padded_vocab=16, seed=43),
        # Beyond 8192 elements dynamo's optimiser leaves a weight's Transpose in the graph.
        Backbone("wide", layers=(1, 1), d_ff=288, vocab=272, gated=True, seed=44),
    ]
}


def build(backbone):
    """The PyTorch model of a backbone, f32, without gradients."""
    torch.manual_seed(backbone.seed)
    config = cases.backbone_config(backbone)
    model_class = T5ForConditionalGeneration
    if backbone.family != "t5":
        model_class, config_class = {
            "mt5": (MT5ForConditionalGeneration, MT5Config), "umt5": (UMT5ForConditionalGeneration, UMT5Config),
        }[backbone.family]
        fields = config.to_dict() | {"attn_implementation": backbone.attention}
        for derived in ("model_type", "architectures", "dense_act_fn", "is_gated_act"):
            fields.pop(derived, None)
        config = config_class(**fields)
    if backbone.activation:
        config.dense_act_fn = backbone.activation
    config.scale_decoder_outputs = backbone.tied and backbone.scaled
    model = cases.draw_weights(backbone, model_class(config).eval())
    model.config.tie_word_embeddings = backbone.tied  # for umT5 this alone decides whether the head is scaled
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((128 * weight).round().div(128).bfloat16())
    if backbone.padded_vocab:
        padded = nn.Linear(backbone.d_model, backbone.vocab + backbone.padded_vocab, bias=False)
        with torch.no_grad():
            padded.weight.copy_(torch.cat([model.lm_head.weight, torch.zeros(backbone.padded_vocab, backbone.d_model)]))
        model.lm_head = padded
    return model.requires_grad_(False)
