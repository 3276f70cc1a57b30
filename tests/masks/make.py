"""Writes the models of this folder: T5 exports whose masks, axes or sizes say something else than the usual.

    pip install torch==2.15.* transformers==5.23.* onnx onnxscript onnxruntime
    python make.py

Each is a T5 of one block a tower, 16 wide, with a vocabulary of 32. `logits.json` has, for those that must be rewritten, the
logits that PyTorch computes of `inputs.json` in double precision.
"""

import copy
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.transformers import float16
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

HERE = Path(__file__).resolve().parent
AXES = {
    "input_ids": {0: "batch", 1: "source"}, "attention_mask": {0: "batch", 1: "source"},
    "decoder_input_ids": {0: "batch", 1: "target"}, "logits": {0: "batch", 1: "target"},
    "states": {0: "batch", 1: "source"}, "encoder_attention_mask": {0: "batch", 1: "source"},
    "decoder_attention_mask": {0: "batch", 1: "target"},
}


def model(attention="eager"):
    torch.manual_seed(7)
    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_heads=2, num_layers=1, num_decoder_layers=1,
                      relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
                      decoder_start_token_id=0, attn_implementation=attention)
    found = T5ForConditionalGeneration(config).eval()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found


class Whole(nn.Module):
    """As everyone exports it; `change` makes another mask of the one that is given."""

    def __init__(self, model, change=lambda mask: mask):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        mask = self.change(attention_mask)
        return self.model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=decoder_input_ids, use_cache=False).logits


class OfTokens(Whole):
    """Without a mask: padding is what has token 0."""

    def forward(self, input_ids, decoder_input_ids):
        return super().forward(input_ids, self.change(input_ids), decoder_input_ids)


class WithTargetMask(Whole):
    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
                          decoder_attention_mask=decoder_attention_mask, use_cache=False).logits


class Encoder(nn.Module):
    def __init__(self, model, masked=True):
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, input_ids, attention_mask):
        mask = attention_mask if self.masked else torch.ones_like(attention_mask)
        return self.model.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state


class Decoder(nn.Module):
    """Reads the encoder's states, and its mask where it has one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, decoder_input_ids, states, encoder_attention_mask=None, bias=None):
        hidden = self.model.decoder(input_ids=decoder_input_ids, attention_mask=bias, encoder_hidden_states=states,
                                    encoder_attention_mask=encoder_attention_mask, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden * self.model.model_dim**-0.5)


def tokens(batch, length, seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(2, 32, (batch, length)))


def padded(batch, length, dtype=torch.int64):
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1:, -2:] = 0
    return mask.to(dtype)


def inputs(batch=2, source=7, target=4):
    return {"input_ids": tokens(batch, source, 1), "attention_mask": padded(batch, source),
            "decoder_input_ids": tokens(batch, target, 2)}


def export(name, module, given, names, output="logits", axes=AXES, opset=17):
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    used = {key: axes[key] for key in [*names, output] if key in axes}
    torch.onnx.export(module, tuple(given), str(path), input_names=list(names), output_names=[output], dynamic_axes=used,
                      opset_version=opset, dynamo=False)
    for node in (proto := onnx.load(path)).graph.node:
        node.doc_string = ""
    onnx.save(proto, path)
    return path


def edit(path, target, change):
    proto = onnx.load(HERE / path)
    change(proto.graph)
    (HERE / target).parent.mkdir(exist_ok=True)
    onnx.save(proto, HERE / target)


def rename_axes(graph, names):
    """Gives axes other names: by input, for each axis a name, a number, or nothing."""
    for value in list(graph.input) + list(graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names.get(value.name, ())):
            dim.ClearField("dim_param"), dim.ClearField("dim_value")
            if isinstance(name, int):
                dim.dim_value = name
            elif name:
                dim.dim_param = name
    del graph.value_info[:]


def main():
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    eager, sdpa = model(), model("sdpa")
    sdpa.load_state_dict(eager.state_dict())
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    whole = list(inputs().values())

    export("plain.onnx", Whole(eager), whole, names)
    export("inverted.onnx", Whole(eager, lambda mask: 1 - mask), [whole[0], 1 - whole[1], whole[2]], names)
    export("of_tokens.onnx", OfTokens(eager, lambda ids: (ids != 0).long()), [whole[0], whole[2]], (names[0], names[2]))
    export("target_mask.onnx", WithTargetMask(eager), [*whole, padded(2, 4)], (*names, "decoder_attention_mask"))
    # Traced with one token, torch takes the decoder's attention for one that needs no mask.
    export("one_token.onnx", Whole(sdpa), list(inputs(target=1).values()), names)
    fixed = {key: {0: "batch"} if key in ("decoder_input_ids", "logits") else AXES[key] for key in AXES}
    export("fixed_target_1.onnx", Whole(eager), list(inputs(target=1).values()), names, axes=fixed)
    fixed = {key: {1: AXES[key][1]} for key in AXES}
    export("fixed_batch_1.onnx", Whole(eager), list(inputs(batch=1).values()), names, axes=fixed)

    # A mask in other places than over the keys, or beside it, in the mask that the eager model makes of a float.
    def square(mask, of_queries, of_keys):
        shape = (mask.shape[0], 1, mask.shape[1], mask.shape[1])
        kept = torch.ones(shape, dtype=torch.bool)
        if of_queries:
            kept = kept & (mask[:, None, :, None] != 0)
        if of_keys:
            kept = kept & (mask[:, None, None, :] != 0)
        return kept

    class OverEncoder(nn.Module):
        """The encoder's bias is what `bias` makes of the mask; the decoder's cross-attention reads the mask."""

        def __init__(self, bias):
            super().__init__()
            self.encoder, self.decoder, self.bias = eager.encoder, Decoder(eager), bias

        def forward(self, input_ids, attention_mask, decoder_input_ids):
            states = self.encoder(input_ids=input_ids, attention_mask=self.bias(attention_mask)).last_hidden_state
            return self.decoder(decoder_input_ids, states, attention_mask)

    lowest = torch.finfo(torch.float32).min
    where = lambda kept, fill: torch.where(kept, torch.tensor(0.0), torch.tensor(fill))
    biases = {
        "of_queries": lambda mask: where(square(mask, True, False), lowest),
        "of_both": lambda mask: where(square(mask, True, True), lowest),
        "of_both_infinite": lambda mask: where(square(mask, True, True), float("-inf")),
        "causal_encoder": lambda mask: where(square(mask, False, True).tril(), lowest),
        "near_by": lambda mask: where(square(mask, False, True).tril(30).triu(-30), lowest),
        "added_as_it_is": lambda mask: mask[:, None, None, :].float(),
    }
    for name, bias in biases.items():
        export(f"{name}.onnx", OverEncoder(bias), whole, names)

    class OverDecoder(nn.Module):
        """The decoder's own bias lets each position see `ahead` of those behind it, and those from `beyond` on."""

        def __init__(self, ahead, beyond=None):
            super().__init__()
            self.encoder, self.decoder, self.ahead, self.beyond = eager.encoder, Decoder(eager), ahead, beyond

        def forward(self, input_ids, attention_mask, decoder_input_ids):
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            length = decoder_input_ids.shape[1]
            kept = torch.ones((decoder_input_ids.shape[0], 1, length, length), dtype=torch.bool).tril(self.ahead)
            if self.beyond is not None:
                kept = kept | (torch.arange(length) >= self.beyond)
            return self.decoder(decoder_input_ids, states, attention_mask, where(kept, lowest))

    export("sees_the_next.onnx", OverDecoder(1), whole, names)
    export("sees_the_earlier.onnx", OverDecoder(0), whole, names)
    # As a mask that is cut from a table of 40 positions leaves it: no short target shows it.
    export("sees_the_far.onnx", OverDecoder(0, beyond=40), whole, names)

    # A pair of files.
    states = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 7, 16)).astype(np.float32))
    export("pair/encoder_model.onnx", Encoder(eager), whole[:2], names[:2], "last_hidden_state",
           {**AXES, "last_hidden_state": AXES["states"]})
    pair = ("decoder_input_ids", "states", "encoder_attention_mask")
    export("pair/decoder_model.onnx", Decoder(eager), [whole[2], states, whole[1]], pair)
    export("pair_unmasked/decoder_model.onnx", Decoder(eager), [whole[2], states], pair[:2])

    # Beyond f16 between the encoder's block and its final norm.
    large = copy.deepcopy(eager)
    with torch.no_grad():
        large.encoder.block[0].layer[1].DenseReluDense.wo.weight *= 1e5
    path = export("overflow.onnx", Whole(large), whole, names)
    onnx.save(float16.convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    edit("plain.onnx", "half.onnx", lambda g: None)
    onnx.save(float16.convert_float_to_float16(onnx.load(HERE / "half.onnx"), keep_io_types=True), HERE / "half.onnx")

    edit("plain.onnx", "same_axes.onnx", lambda g: rename_axes(g, {n: ("n", "n") for n in (*names, "logits")}))
    edit("plain.onnx", "other_axes.onnx", lambda g: rename_axes(g, {
        "input_ids": ("a", "b"), "attention_mask": ("b", "a"), "decoder_input_ids": ("c", "a"), "logits": ("d", "e")}))
    edit("plain.onnx", "unnamed_axes.onnx", lambda g: rename_axes(g, {n: (None, None) for n in (*names, "logits")}))

    given = {**inputs(), "padding": 1 - inputs()["attention_mask"], "decoder_attention_mask": padded(2, 4)}
    with torch.no_grad():
        logits = eager.double()(**inputs(), use_cache=False).logits
        unmasked = eager(input_ids=given["input_ids"], decoder_input_ids=given["decoder_input_ids"], use_cache=False,
                         attention_mask=torch.ones_like(given["input_ids"])).logits
    (HERE / "inputs.json").write_text(json.dumps({k: v.tolist() for k, v in given.items()}) + "\n")
    (HERE / "logits.json").write_text(json.dumps({"masked": logits.tolist(), "unmasked": unmasked.tolist()}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
