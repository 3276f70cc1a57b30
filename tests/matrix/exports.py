"""How people export a T5: TorchScript, dynamo, and encoder and decoder in two files."""

import json
import subprocess
from pathlib import Path

import torch
from torch import nn

from backbones import build, cases

HERE = Path(__file__).resolve().parent
PRECISION = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ENCODER_AXES = {
    "input_ids": {0: "batch", 1: "enc_seq"}, "attention_mask": {0: "batch", 1: "enc_seq"},
    "last_hidden_state": {0: "batch", 1: "enc_seq"},
}
DECODER_AXES = {
    "input_ids": {0: "batch", 1: "dec_seq"}, "encoder_hidden_states": {0: "batch", 1: "enc_seq"},
    "encoder_attention_mask": {0: "batch", 1: "enc_seq"}, "logits": {0: "batch", 1: "dec_seq"},
}
OPSET = {"torchscript": 17, "dynamo": 18}


class EncoderStates(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class DecoderLogits(nn.Module):
    """The decoder and the LM head; with `cache` also the keys and values that the next step would reuse."""

    def __init__(self, model, cache):
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, input_ids, encoder_hidden_states, encoder_attention_mask):
        found = self.model(
            decoder_input_ids=input_ids, encoder_outputs=(encoder_hidden_states,),
            attention_mask=encoder_attention_mask, use_cache=self.cache,
        )
        if not self.cache:
            return found.logits
        past = found.past_key_values
        kept = [found.logits]
        for own, cross in zip(past.self_attention_cache.layers, past.cross_attention_cache.layers):
            kept += [own.keys, own.values, cross.keys, cross.values]
        return tuple(kept)


class WithDecoderMask(nn.Module):
    """The four inputs of transformers' own former exporter."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask, use_cache=False,
        )
        return found.logits, found.encoder_last_hidden_state


class WithFixedMasks(nn.Module):
    """The masks of one batch are a part of the model: two inputs, one output."""

    def __init__(self, model, mask):
        super().__init__()
        self.model = model
        self.register_buffer("mask", mask)

    def forward(self, input_ids, decoder_input_ids):
        return self.model(
            input_ids=input_ids, attention_mask=self.mask, decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=torch.ones_like(decoder_input_ids), use_cache=False,
        ).logits


class WithoutCausalMask(nn.Module):
    """A decoder whose positions see later ones."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        batch, length = decoder_input_ids.shape
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=torch.zeros(batch, 1, length, length), use_cache=False,
        ).logits


def model_of(backbone, precision):
    return build(backbone).to(PRECISION[precision])


def example(backbone, static):
    """The batch to trace with: the case's own where sizes are static, else other sizes than it is checked with."""
    batch = cases.draw_batch(backbone)
    if static:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs = {name: torch.randint(2, backbone.vocab, (4, 5 if "decoder" in name else 8))
              for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["attention_mask"][0, 6:] = 0
    return inputs


def single(folder, backbone, *, exporter, precision="f32", opset=None, static=False, folded=True, model=None):
    """model.onnx: input_ids, attention_mask, decoder_input_ids -> logits."""
    model = model or model_of(backbone, precision)
    axes = {} if static else cases.AXES
    cases.export(cases.Logits(model), folder / "model.onnx", example(backbone, static), ["logits"], exporter=exporter,
                 opset=opset or OPSET[exporter], axes=axes, folded=folded)


def with_fixed_masks(folder, backbone, *, exporter, precision="f32"):
    """Static shapes; the mask of the backbone's batch is a constant."""
    inputs = example(backbone, static=True)
    model = WithFixedMasks(model_of(backbone, precision), inputs.pop("attention_mask"))
    cases.export(model, folder / "model.onnx", inputs, ["logits"], exporter=exporter, opset=OPSET[exporter], axes={})


def without_causal_mask(folder, backbone, *, exporter):
    cases.export(WithoutCausalMask(build(backbone)), folder / "model.onnx", example(backbone, static=True), ["logits"],
                 exporter=exporter, opset=OPSET[exporter], axes={})


def with_decoder_mask(folder, backbone):
    inputs = example(backbone, static=False)
    inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    axes = cases.AXES | {"decoder_attention_mask": cases.AXES["decoder_input_ids"],
                         "encoder_last_hidden_state": cases.AXES["input_ids"]}
    cases.export(WithDecoderMask(build(backbone)), folder / "model.onnx", inputs,
                 ["logits", "encoder_last_hidden_state"], exporter="torchscript", opset=17, axes=axes)


def present_names(blocks, pattern):
    return [pattern.format(block=block, tower=tower, kind=kind)
            for block in range(blocks) for tower in ("decoder", "encoder") for kind in ("key", "value")]


def two_files(folder, backbone, *, exporter, precision="f32", opset=None, static=False, cache=False,
              pattern="present.{block}.{tower}.{kind}"):
    """encoder_model.onnx and decoder_model.onnx in Optimum's layout, each with its own copy of the embedding."""
    model = model_of(backbone, precision)
    batch = example(backbone, static)
    opset = opset or OPSET[exporter]
    with torch.no_grad():
        states = model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    cases.export(EncoderStates(model), folder / "encoder_model.onnx", inputs, ["last_hidden_state"], exporter=exporter,
                 opset=opset, axes={} if static else ENCODER_AXES)
    inputs = {"input_ids": batch["decoder_input_ids"], "encoder_hidden_states": states,
              "encoder_attention_mask": batch["attention_mask"]}
    outputs, axes = ["logits"], {} if static else dict(DECODER_AXES)
    if cache:
        names = present_names(backbone.layers[1], pattern)
        outputs += names
        if not static:
            axes |= {name: {0: "batch", 2: "enc_seq" if "encoder" in name else "dec_seq"} for name in names}
    cases.export(DecoderLogits(model, cache), folder / "decoder_model.onnx", inputs, outputs, exporter=exporter,
                 opset=opset, axes=axes)
    write_config(model, folder)


def write_config(model, folder):
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    config["architectures"] = [type(model).__name__]
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


def optimum(folder, backbone, python, scratch):
    """The real thing: a checkpoint, exported by Optimum in an environment of its own."""
    model = build(backbone)
    checkpoint = scratch / "checkpoint"
    model.save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"tie_word_embeddings": backbone.tied, "feed_forward_proj": "gated-gelu" if backbone.gated else "relu"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    subprocess.run([python, HERE / "export_by_optimum.py", checkpoint, scratch / "onnx"], check=True)
    for path in sorted((scratch / "onnx").glob("*.onnx")):
        (folder / path.name).write_bytes(path.read_bytes())
        cases.strip(folder / path.name)
    write_config(model, folder)
