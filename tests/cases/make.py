"""Writes the fixtures of this folder: exported T5 backbones and what PyTorch makes of Ladder Side-Tuning on them.

    python -m venv venv && . venv/bin/activate
    pip install torch==2.15.* transformers==5.23.* onnx onnxscript safetensors onnxruntime
    python make.py                      everything
    python make.py relu_torchscript     one case; also: `python make.py refused`, `python make.py shapes`

The side network below is written for reading: forward only, autograd does the rest, no dropout. It is the second,
independent derivation that the compiler is held against; it shares no code with it. Expectations are computed in fp64
and stored in fp32: one rounding from the truth. Everything is seeded: a second run on the same versions writes the
same bytes.
"""

import copy
import dataclasses
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm

HERE = Path(__file__).resolve().parent
STEPS = 20
STACKS = ("encoder", "decoder")

# --------------------------------------------------------------------------------------------------------- cases


@dataclasses.dataclass
class Case:
    """One backbone, one way to export it, one side network, one short training run."""

    name: str
    # backbone
    layers: tuple = (2, 2)  # encoder, decoder
    d_model: int = 48
    d_kv: int = 20
    d_ff: int = 96
    heads: int = 3
    vocab: int = 96
    gated: bool = False
    tied: bool = True
    buckets: tuple = (32, 128)  # relative_attention_num_buckets, relative_attention_max_distance
    # export
    exporter: str = "torchscript"  # torchscript | dynamo
    opset: int = 17
    attention: str = "eager"  # transformers' attn_implementation: eager | sdpa
    symbolic: tuple = ("batch", "enc_seq", "dec_seq")  # the dimensions that stay symbolic
    folded: bool = True  # TorchScript's do_constant_folding, dynamo's optimize
    external: bool = False  # weights in model.onnx.data
    # side network
    reduction: int = 8
    kept: tuple = None  # kept blocks (encoder, decoder); None keeps all
    free: tuple = (0, 0)  # side blocks without a tap behind the kept ones (encoder, decoder)
    down: str = "linear"  # of the blocks' taps: linear | pool | low-rank:K
    gate: str = "learnable"  # learnable | fixed | one | schedule-linear | schedule-hyperbolic | none
    merge: str = "before"  # a tap is mixed in before | after the side block
    temperature: float = 0.1
    alpha: float = 0.0
    merge_last: bool = False
    bias: bool = True
    label: float = 1.0
    distill: float = 0.0
    magnitude: bool = False  # also write magnitude.safetensors
    tables: str = "first"  # which blocks own a position table: first | all
    # data and training
    sizes: tuple = (3, 9, 6)  # batch, enc_seq, dec_seq
    pad_left: bool = False
    padded: bool = True  # sources of several lengths in a batch
    lr: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def blocks(self, stack):
        """The kept blocks of a stack, ascending."""
        index = STACKS.index(stack)
        return list(range(self.layers[index])) if self.kept is None else list(self.kept[index])


CASES = [
    Case("relu_torchscript", magnitude=True, seed=12),
    Case("gated_dynamo", d_model=56, d_kv=8, d_ff=74, heads=5, gated=True, tied=False, exporter="dynamo", opset=18,
         attention="sdpa", reduction=4, magnitude=True, sizes=(3, 11, 5), seed=2),
    Case("first_block_dropped", layers=(3, 1), d_kv=12, heads=5, opset=14, folded=False, reduction=4,
         kept=([1, 2], [0]), sizes=(3, 8, 4), pad_left=True, seed=3),
    Case("two_and_three_blocks", layers=(2, 3), d_kv=10, d_ff=64, gated=True, exporter="dynamo", opset=20, vocab=64,
         reduction=2, kept=([1], [1, 2]), magnitude=True, weight_decay=0.1, seed=11),
    Case("fixed_gate_static", d_kv=16, heads=5, tied=False, attention="sdpa", symbolic=(), gate="fixed", alpha=0.05,
         sizes=(3, 7, 5), seed=11),
    Case("no_gate_no_bias_static", d_model=52, exporter="dynamo", opset=18, symbolic=(), folded=False, gate="none",
         bias=False, reduction=4, sizes=(3, 10, 6), weight_decay=0.0, seed=6),
    Case("merge_last", d_kv=12, heads=5, gated=True, attention="sdpa", merge_last=True, temperature=0.5, alpha=0.1,
         reduction=4, weight_decay=0.0, seed=15),
    Case("distillation", d_model=64, d_kv=16, heads=3, exporter="dynamo", opset=18, label=0.7, distill=0.05,
         buckets=(16, 20), sizes=(3, 11, 4), vocab=160, d_ff=64, seed=8),
    Case("external_weights", layers=(3, 1), exporter="dynamo", opset=18, attention="sdpa", external=True,
         kept=([0, 2], [0]), weight_decay=0.05, seed=9),
    Case("no_gate_merge_distill", layers=(2, 3), d_kv=8, heads=5, d_ff=72, opset=14, gated=True, tied=False,
         symbolic=("enc_seq", "dec_seq"), gate="none", merge_last=True, bias=False, distill=0.02, reduction=2,
         kept=([0], [0, 2]), buckets=(8, 12), weight_decay=0.0, seed=10),
    # The exporter's optimiser folds position table and buckets into one constant a tower.
    Case("folded_position_bias", exporter="dynamo", opset=18, symbolic=(), heads=5, reduction=4, sizes=(3, 11, 6),
         seed=5),
    Case("single_head_static", layers=(1, 1), exporter="dynamo", opset=18, symbolic=(), heads=1, d_kv=16, reduction=2,
         vocab=64, sizes=(3, 8, 5), seed=5),
    Case("unoptimised_dynamo", layers=(1, 2), exporter="dynamo", opset=18, folded=False, reduction=4, vocab=64, seed=5),
    # The exporter inlines its own function for attention: a scale is the root of a one that is cast like the queries.
    Case("unoptimised_sdpa", layers=(1, 1), d_model=16, d_kv=8, d_ff=24, heads=2, exporter="dynamo", opset=20, folded=False,
         attention="sdpa", reduction=2, vocab=32, sizes=(3, 7, 4), seed=5),
    Case("unfolded_sdpa", layers=(2, 1), opset=14, folded=False, attention="sdpa", gated=True, tied=False, reduction=4,
         vocab=64, seed=4),
    # Side blocks behind the last rung, taps through two matrices, mixed in behind the blocks.
    Case("free_blocks_low_rank", layers=(2, 3), d_kv=12, d_ff=64, vocab=64, reduction=4, kept=([1], [0, 1]), free=(1, 2),
         down="low-rank:5", merge="after", gated=True, weight_decay=0.1, seed=3),
    # 48 features in 9 spans of unequal length; a gate that a schedule sets.
    Case("pooled_schedule", layers=(2, 1), d_ff=64, vocab=64, reduction=5, down="pool", gate="schedule-linear", seed=8),
    # In spans of 8.
    Case("pooled_even_after", layers=(1, 2), d_ff=64, vocab=64, down="pool", gate="schedule-hyperbolic", merge="after",
         bias=False, exporter="dynamo", opset=18, seed=9),
    # The blocks' taps are not read, the backbone's output is.
    Case("gate_one_merge_last", layers=(2, 2), d_kv=16, d_ff=64, vocab=64, reduction=4, kept=([0, 1], [1]), gate="one",
         merge_last=True, free=(0, 1), seed=10),
    Case("opset_23", layers=(2, 1), exporter="dynamo", opset=23, gated=True, tied=False, reduction=4, magnitude=True,
         seed=5),
]

# ------------------------------------------------------------------------------------------------------ backbone


def backbone_config(case):
    return T5Config(
        vocab_size=case.vocab, d_model=case.d_model, d_kv=case.d_kv, d_ff=case.d_ff, num_heads=case.heads,
        num_layers=case.layers[0], num_decoder_layers=case.layers[1], dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if case.gated else "relu", tie_word_embeddings=case.tied,
        relative_attention_num_buckets=case.buckets[0], relative_attention_max_distance=case.buckets[1],
        decoder_start_token_id=0, attn_implementation=case.attention,
    )


def build_backbone(case):
    torch.manual_seed(case.seed)
    return draw_weights(case, T5ForConditionalGeneration(backbone_config(case)).eval())


def draw_weights(case, model):
    """Weights large enough that attention is not uniform and no block is close to the identity."""
    if not case.tied:
        model.lm_head = nn.Linear(case.d_model, case.vocab, bias=False)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if "layer_norm" in name:
                weight.normal_(1.0, 0.25)
            elif "relative_attention_bias" in name or name == "shared.weight":
                weight.normal_(0.0, 1.0)
            elif name.endswith((".q.weight", ".k.weight")):
                weight.normal_(0.0, 1.2 * case.d_model**-0.5 * case.d_kv**-0.25)
            else:
                weight.normal_(0.0, 1.3 * weight.shape[1] ** -0.5)
    return model.requires_grad_(False)


def draw_batch(case):
    """Random tokens with real padding: shorter rows, ignored labels."""
    draw = torch.Generator().manual_seed(1000 + case.seed)
    batch, enc_seq, dec_seq = case.sizes
    input_ids = torch.randint(2, case.vocab, (batch, enc_seq), generator=draw)
    labels = torch.randint(2, case.vocab, (batch, dec_seq), generator=draw)
    attention_mask = torch.ones_like(input_ids)
    for row in range(1, batch):
        padding = slice(0, 2 * row) if case.pad_left else slice(enc_seq - 2 * row, enc_seq)
        attention_mask[row, padding] = 0 if case.padded else 1
        labels[row, dec_seq - row :] = -100
    decoder_input_ids = torch.zeros_like(labels)
    decoder_input_ids[:, 1:] = labels[:, :-1].clamp(min=0)
    return {
        "input_ids": input_ids * attention_mask, "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids, "labels": labels,
    }


def run_backbone(model, batch):
    """Hidden states of every block by tap name, the decoder's normed output and the logits."""
    taps, hooks = {}, []

    def keep(name, pick):
        def hook(_module, inputs, output=None):
            taps[name] = pick(inputs, output).detach().clone()
        return hook

    for stack in STACKS:
        blocks = getattr(model, stack).block
        hooks.append(blocks[0].register_forward_pre_hook(keep(f"{stack}.embedding", lambda i, o: i[0])))
        for index, block in enumerate(blocks):
            pick = lambda i, o: o if torch.is_tensor(o) else o[0]
            hooks.append(block.register_forward_hook(keep(f"{stack}.{index}", pick)))
    hooks.append(model.decoder.final_layer_norm.register_forward_hook(keep("decoder.normed", lambda i, o: o)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return taps, logits


# -------------------------------------------------------------------------------------------------- side network


def indexed(blocks, make):
    """Modules under their block's index in the backbone, so that names survive layer dropping."""
    return nn.ModuleDict({str(block): make(block) for block in blocks})


class RMSNorm(T5LayerNorm):
    """T5's norm in the precision of its input; the family's own norms drop to fp32 on the way."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def in_fp64(module):
    """A copy whose weights and arithmetic are fp64."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        if hasattr(part, "variance_epsilon"):
            part.__class__ = RMSNorm
    return module


class SideStack(nn.Module):
    """One ladder: s_0 = W_first e + b_first; s'_i = g s_(i-1) + (1 - g)(W_i h_i + b_i); s_i = SideBlock_i(s'_i)."""

    def __init__(self, case, config, stack):
        super().__init__()
        blocks = case.blocks(stack)
        side = copy.deepcopy(config)
        side.d_model //= case.reduction
        side.d_ff //= case.reduction
        side.d_kv //= case.reduction
        side._attn_implementation = "eager"
        self.case = case

        def down(_block=None):
            return nn.Linear(config.d_model, side.d_model, bias=case.bias)

        def tap_down(_block):
            kind, _, rank = case.down.partition(":")
            if kind == "pool":
                return nn.AdaptiveAvgPool1d(side.d_model)
            if kind == "low-rank":
                inner = nn.Linear(config.d_model, int(rank), bias=False)
                return nn.Sequential(inner, nn.Linear(int(rank), side.d_model, bias=case.bias))
            return down()

        self.side_first_downsample = down()
        self.tapped = [str(block) for block in blocks if case.gate != "one"]
        self.side_downsamples = indexed(self.tapped, tap_down)
        owners = blocks if case.tables == "all" else blocks[:1]
        count = config.num_layers if stack == "encoder" else config.num_decoder_layers
        free = case.free[STACKS.index(stack)]
        every = blocks + list(range(count, count + free))
        self.side_block = indexed(every, lambda block: T5Block(side, block in owners, layer_idx=block))
        self.final_side_layer_norm = T5LayerNorm(side.d_model, eps=side.layer_norm_epsilon)
        if case.gate == "learnable":
            gates = {str(block): nn.Parameter(torch.full((1,), case.alpha)) for block in blocks}
            self.side_gate_params = nn.ParameterDict(gates)

    def gate(self, block):
        """The gate as a tensor or a constant; None where there is no gate."""
        if self.case.gate == "learnable":
            return torch.sigmoid(self.side_gate_params[block] / self.case.temperature)
        if self.case.gate.startswith("schedule"):
            return self.scheduled
        if self.case.gate == "fixed":
            return float(torch.sigmoid(torch.tensor(self.case.alpha / self.case.temperature)))
        return None

    def forward(self, taps, stack, mask, encoder_states=None, encoder_mask=None, scheduled=None):
        self.scheduled = scheduled
        state = self.side_first_downsample(taps[f"{stack}.embedding"])
        position_bias = cross_bias = None
        for block, module in self.side_block.items():
            if self.case.merge == "before":
                state = self.mixed(state, block, taps, stack)
            if self.case.tables == "all":
                position_bias = None
            state, position_bias, cross_bias = module(
                state, mask, position_bias, encoder_states, encoder_mask, cross_bias
            )
            if self.case.merge == "after":
                state = self.mixed(state, block, taps, stack)
        return self.final_side_layer_norm(state)

    def mixed(self, state, block, taps, stack):
        if block not in self.tapped:
            return state
        rung = self.side_downsamples[block](taps[f"{stack}.{block}"])
        gate = self.gate(block)
        return state + rung if gate is None else gate * state + (1 - gate) * rung


class LadderSideNetwork(nn.Module):
    """Both ladders and the head; `state_dict` holds exactly the trainable parameters, under the reference's names."""

    def __init__(self, case, backbone):
        super().__init__()
        self.case = case
        if case.gate.startswith("schedule"):  # in the state dict, but not trained
            self.side_gate = nn.Parameter(torch.full((1,), 0.1))
        self.encoder = SideStack(case, backbone.encoder.config, "encoder")
        self.decoder = SideStack(case, backbone.decoder.config, "decoder")
        self.side_final_upsample = nn.Linear(case.d_model // case.reduction, case.d_model, bias=case.bias)
        if case.merge_last:
            self.side_gate_params_merge_last = nn.Parameter(torch.full((1,), case.alpha))
        self.frozen_head = [backbone.lm_head.weight]  # in a list: not a parameter of this module
        self.scale = case.d_model**-0.5 if case.tied else 1.0

    def forward(self, taps, batch):
        dtype = self.side_final_upsample.weight.dtype
        lowest = torch.finfo(torch.float32).min
        padding = (1 - batch["attention_mask"])[:, None, None, :].to(dtype) * lowest
        length = batch["decoder_input_ids"].shape[1]
        causal = torch.full((length, length), lowest, dtype=dtype).triu(1)[None, None]
        scheduled = self.side_gate.detach() if self.case.gate.startswith("schedule") else None
        encoded = self.encoder(taps, "encoder", padding, scheduled=scheduled)
        decoded = self.decoder(taps, "decoder", causal, encoded, padding, scheduled)
        y = self.side_final_upsample(decoded)
        if self.case.merge_last:
            gate = torch.sigmoid(self.side_gate_params_merge_last / self.case.temperature)
            y = gate * y + (1 - gate) * taps["decoder.normed"]
        return F.linear(y * self.scale, self.frozen_head[0].to(dtype))


def loss_of(case, logits, labels, teacher):
    """Cross-entropy over labels != -100. With distillation: also KL over all positions, summed, divided by the batch."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    if case.distill == 0:
        return loss
    target = F.log_softmax(teacher / 0.1, dim=-1)
    divergence = F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean", log_target=True)
    return case.label * loss + case.distill * divergence


def initialise(case, side):
    """Non-trivial values everywhere, so that no gradient vanishes by symmetry."""
    draw = torch.Generator().manual_seed(2000 + case.seed)
    for name, weight in side.named_parameters():
        with torch.no_grad():
            if name == "side_gate":
                weight.fill_(0.3)
            elif "gate_params" in name:
                weight.copy_(case.alpha + 0.3 * case.temperature * torch.randn(1, generator=draw))
            elif "layer_norm" in name:
                weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=draw))
            elif weight.dim() == 1 or "relative_attention_bias" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
            else:
                weight.copy_(weight.shape[1] ** -0.5 * torch.randn(weight.shape, generator=draw))


def gradient(weight):
    """Zeros for what the loss does not move."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()


def decays(name, weight):
    """Weight decay is for matrices only: no biases, norms, gates, tables."""
    return weight.dim() == 2 and "relative_attention_bias" not in name


def train(case, side, taps, batch, teacher):
    """The first gradients, then STEPS AdamW steps: {"grad.<name>", "curve", "grad_norm", "final.<name>"}."""
    groups = [
        {"params": [w for n, w in side.named_parameters() if decays(n, w)], "weight_decay": case.weight_decay},
        {"params": [w for n, w in side.named_parameters() if not decays(n, w)], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=case.lr, betas=(0.9, 0.999), eps=1e-8)
    found, curve, norms = {}, [], []
    for step in range(STEPS):
        adamw.zero_grad()
        loss = loss_of(case, side(taps, batch), batch["labels"], teacher)
        loss.backward()
        if step == 0:
            found["loss"] = loss.detach().clone()
            found |= {f"grad.{n}": gradient(w) for n, w in side.named_parameters()}
        curve.append(loss.detach())
        norms.append(nn.utils.clip_grad_norm_(side.parameters(), 1.0))
        adamw.step()
    found["curve"], found["grad_norm"] = torch.stack(curve), torch.stack(norms)
    return found | {f"final.{n}": w.detach().clone() for n, w in side.named_parameters()}


# ----------------------------------------------------------------------------------------------- pruned initials


def highest(score, count):
    """The `count` highest scores, ascending by index. Pruned first: the lowest score, among equals the lower index."""
    order = np.argsort(score, kind="stable")
    return np.sort(order[len(score) - count :])


def magnitude(case, backbone):
    """The pruned initial side blocks with |w| as importance, and every kept index set of the chain.

    A dimension of size n keeps n - round((1 - 1/r) n) by the method's own formula. Where that is not the side
    network's width it could not be loaded, so the width rules: n // r, and heads * (d_kv // r) for q, k, v.
    """
    state = {name: weight.detach().double().numpy() for name, weight in backbone.named_parameters()}
    r = case.reduction
    width, ff_rows, attention_rows = case.d_model // r, case.d_ff // r, case.heads * (case.d_kv // r)
    pruned, kept = {}, {}
    columns = kept["shared"] = highest(np.abs(state["shared.weight"]).sum(0), width)
    for index, stack in enumerate(STACKS):
        table = f"{case.blocks(stack)[0]}.layer.0.SelfAttention.relative_attention_bias.weight"
        pruned[f"{stack}.side_block.{table}"] = state[
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ]
        for block in range(case.layers[index]):
            attentions = ["SelfAttention", "EncDecAttention"][: index + 1]
            for layer, kind in enumerate(attentions + ["DenseReluDense"]):
                into, out = (("wi_0", "wi_1") if case.gated else ("wi",)), "wo"
                if kind != "DenseReluDense":
                    into, out = ("q", "k", "v"), "o"
                source = f"{stack}.block.{block}.layer.{layer}"
                target = f"{stack}.side_block.{block}.layer.{layer}"
                pruned[f"{target}.layer_norm.weight"] = state[f"{source}.layer_norm.weight"][columns]

                matrices = {name: state[f"{source}.{kind}.{name}.weight"][:, columns] for name in into}
                importance = np.prod([np.abs(matrix) for matrix in matrices.values()], axis=0)
                rows = highest(importance.sum(1), attention_rows if out == "o" else ff_rows)
                pruned |= {f"{target}.{kind}.{name}.weight": matrix[rows] for name, matrix in matrices.items()}

                matrix = state[f"{source}.{kind}.{out}.weight"][:, rows]
                columns = highest(np.abs(matrix).sum(1), width)
                pruned[f"{target}.{kind}.{out}.weight"] = matrix[columns]
                kept[f"{stack}.{block}.{layer}.rows"], kept[f"{stack}.{block}.{layer}.out"] = rows, columns
        pruned[f"{stack}.final_side_layer_norm.weight"] = state[f"{stack}.final_layer_norm.weight"][columns]
    return pruned, kept


def write_magnitude(case, backbone, side, path):
    pruned, kept = magnitude(case, backbone)
    shapes = {name: tuple(weight.shape) for name, weight in side.named_parameters()}
    loaded = {name: torch.from_numpy(weight).float() for name, weight in pruned.items() if name in shapes}
    for name, weight in loaded.items():
        assert shapes[name] == tuple(weight.shape), name
    tensors = loaded | {f"kept.{name}": torch.from_numpy(index.astype(np.int64)) for name, index in kept.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# -------------------------------------------------------------------------------------------------------- export


class Logits(nn.Module):
    """The plain backbone as a user exports it: three inputs, one output, no cache."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits


AXES = {
    "input_ids": {0: "batch", 1: "enc_seq"}, "attention_mask": {0: "batch", 1: "enc_seq"},
    "decoder_input_ids": {0: "batch", 1: "dec_seq"}, "logits": {0: "batch", 1: "dec_seq"},
}


def export(module, path, inputs, outputs, *, exporter, opset, axes, folded=True, external=False):
    """Writes `module` with one of PyTorch's exporters. `inputs`: example tensors by name, in order."""
    names = dict(input_names=list(inputs), output_names=outputs, opset_version=opset)
    if exporter == "torchscript":
        torch.onnx.export(module, tuple(inputs.values()), path, dynamo=False, dynamic_axes=axes,
                          do_constant_folding=folded, **names)
    else:
        dims = {dim: torch.export.Dim(dim) for sizes in axes.values() for dim in sizes.values()}
        shapes = tuple({axis: dims[dim] for axis, dim in axes.get(name, {}).items()} for name in inputs)
        torch.onnx.export(module, tuple(inputs.values()), path, dynamo=True, dynamic_shapes=shapes, verbose=False,
                          optimize=folded, external_data=external, **names)
    strip(path)


def strip(path):
    """Drops what the exporters note about the machine (source files, stack traces); maths and names stay."""
    proto = onnx.load(path, load_external_data=False)
    parts = [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info]
    for part in parts + [*proto.graph.input, *proto.graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]
    path.write_bytes(proto.SerializeToString(deterministic=True))


def export_case(case, backbone, batch, folder):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    if case.symbolic:  # traced at other sizes than it is checked with
        b = case.sizes[0] + ("batch" in case.symbolic)
        inputs = {name: torch.randint(2, case.vocab, (b, 5 if "decoder" in name else 8)) for name in inputs}
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        inputs["attention_mask"][0, 6:] = 0
    axes = {name: {a: d for a, d in dims.items() if d in case.symbolic} for name, dims in AXES.items()}
    axes = {name: dims for name, dims in axes.items() if dims}
    export(Logits(backbone), folder / "model.onnx", inputs, ["logits"], exporter=case.exporter, opset=case.opset,
           axes=axes, folded=case.folded, external=case.external)


def run_onnx(path, batch):
    """The first output of a model under ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: batch[i.name].numpy() for i in session.get_inputs()}
    return torch.from_numpy(session.run(None, feeds)[0])


# --------------------------------------------------------------------------------------------------- case folders

MANIFEST = """\
method:
  reduction: {reduction}
  blocks: {{encoder: {encoder}, decoder: {decoder}}}
  free_blocks: {{encoder: {free[0]}, decoder: {free[1]}}}
  down: '{down}'
  gate: {gate}
  merge: {merge}
  temperature: {temperature}
  alpha: {alpha}
  merge_last: {merge_last}
  bias: {bias}
  dropout: 0.0
  init: random
  seed: {seed}
loss: {{label: {label}, distill: {distill}}}
optimizer: {{beta1: 0.9, beta2: 0.999, epsilon: 1.0e-8, weight_decay: {weight_decay}, clip: 1.0}}
"""


def write_manifest(case, path):
    fields = {name: str(value).lower() if isinstance(value, bool) else value
              for name, value in dataclasses.asdict(case).items()}
    path.write_text(MANIFEST.format(encoder=case.blocks("encoder"), decoder=case.blocks("decoder"), **fields))


def order_metadata(path):
    """safetensors writes metadata in an order that changes from run to run."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(data[:8] + text.ljust(end - 8) + data[end:])


def write_expected(case, backbone, side, batch, path):
    """The fp64 results, and the largest distances of the same run in fp32: of the curve, of the final parameters."""
    taps, teacher = run_backbone(backbone, batch)
    rounded = train(case, copy.deepcopy(side), taps, batch, teacher)
    side = in_fp64(side)
    taps, teacher = run_backbone(in_fp64(backbone), batch)
    with torch.no_grad():
        expected = {"backbone.logits": teacher, "logits": side(taps, batch)}
    expected |= {f"tap.{name}": tap for name, tap in taps.items() if name != "decoder.normed"}
    found = train(case, side, taps, batch, teacher)
    moved = {n: v for n, v in found.items() if n.startswith("grad.") and n != "grad.side_gate"}
    vanished = [name for name, value in moved.items() if not value.any()]
    assert not vanished, vanished
    tensors = {name: value.float().contiguous() for name, value in (expected | found).items()}
    save_file(batch | tensors, path, metadata={"lr": repr(case.lr), "weight_decay": repr(case.weight_decay)})
    order_metadata(path)
    distance = {name: float((found[name] - rounded[name]).abs().max()) for name in found}
    return distance["curve"], max(d for name, d in distance.items() if name.startswith("final."))


def write_case(case):
    folder = HERE / case.name
    folder.mkdir(exist_ok=True)
    backbone, batch = build_backbone(case), draw_batch(case)
    export_case(case, backbone, batch, folder)
    _, logits = run_backbone(backbone, batch)
    agreement = (run_onnx(folder / "model.onnx", batch) - logits).abs().max()
    write_manifest(case, folder / "lst.yaml")

    side = LadderSideNetwork(case, backbone)
    initialise(case, side)
    save_file({name: weight.detach() for name, weight in side.named_parameters()}, folder / "side.safetensors")
    if case.magnitude:
        write_magnitude(case, backbone, side, folder / "magnitude.safetensors")
    curve, final = write_expected(case, backbone, side, batch, folder / "expected.safetensors")
    print(f"{case.name:24} export {agreement:.1e} (logits to {logits.abs().max():.1f})"
          f"  fp32 - fp64: curve {curve:.1e}, final {final:.1e}"
          f"  {sum(f.stat().st_size for f in folder.iterdir()) // 1024} KB", flush=True)


# -------------------------------------------------------------------------------------------------- refused models

SMALL = Case("small", d_model=32, d_kv=8, d_ff=48, vocab=64)


class Edit:
    """An exported model under the knife. Values are named by the exporter after their module's path."""

    def __init__(self, case):
        with tempfile.TemporaryDirectory() as folder:
            export_case(case, build_backbone(case), draw_batch(case), Path(folder))
            self.proto = onnx.load(Path(folder) / "model.onnx")
        self.nodes = self.proto.graph.node

    def node(self, path):
        """The node whose first output is `/model/<path>_output_0`."""
        return next(node for node in self.nodes if node.output[0] == f"/model/{path}_output_0")

    def constant(self, name, value):
        self.proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        return name

    def redirect(self, old, new, after):
        """Every node behind `after` reads `new` where it read `old`."""
        for node in list(self.nodes)[list(self.nodes).index(after) + 1 :]:
            node.input[:] = [new if name == old else name for name in node.input]

    def insert(self, after, *nodes):
        """New nodes right behind the node `after`; the last one."""
        position = list(self.nodes).index(after) + 1
        for offset, node in enumerate(nodes):
            self.nodes.insert(position + offset, node)
        return self.nodes[position + len(nodes) - 1]


def unknown_activation():
    """ELU instead of ReLU in two blocks: two refusals."""
    edit = Edit(SMALL)
    for path in ("encoder/block.0/layer.1", "decoder/block.1/layer.2"):
        edit.node(f"{path}/DenseReluDense/act/Relu").op_type = "Elu"
    return edit.proto


def extra_consumer():
    """The mean attention of encoder block 0 is added to the residual stream of encoder block 1."""
    edit = Edit(SMALL)
    attention = edit.node("encoder/block.0/layer.0/SelfAttention/Softmax").output[0]  # [batch, heads, query, key]
    stream = edit.node("encoder/block.1/layer.0/Add")
    last = edit.insert(
        stream,
        helper.make_node("ReduceMean", [attention], ["mean_attention"], axes=[1, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean_attention", edit.constant("heads_axis", [1])], ["per_query"]),
        helper.make_node("Add", [stream.output[0], "per_query"], ["disturbed_stream"]),
    )
    edit.redirect(stream.output[0], "disturbed_stream", last)
    return edit.proto


def missing_residual():
    """The feed-forward of decoder block 0 replaces the residual stream instead of being added to it."""
    edit = Edit(SMALL)
    add = edit.node("decoder/block.0/layer.2/Add")
    branch = edit.node("decoder/block.0/layer.2/DenseReluDense/wo/MatMul").output[0]
    edit.redirect(add.output[0], branch, add)
    edit.nodes.remove(add)
    return edit.proto


def two_heads():
    """A second LM head on the same hidden states."""
    edit = Edit(SMALL)
    head = next(node for node in edit.nodes if node.output[0] == "logits")
    weight = next(w for w in edit.proto.graph.initializer if w.name == head.input[1])
    second = edit.constant("second_head", -numpy_helper.to_array(weight))
    edit.insert(head, helper.make_node("MatMul", [head.input[0], second], ["logits2"]))
    output = edit.proto.graph.output.add()
    output.CopyFrom(edit.proto.graph.output[0])
    output.name = "logits2"
    return edit.proto


def gelu_scale():
    """The tanh GELU of encoder block 1 with 0.05 where 0.044715 belongs."""
    edit = Edit(dataclasses.replace(SMALL, gated=True))
    for node in edit.nodes:
        if node.op_type == "Constant" and node.output[0].startswith("/model/encoder/block.1/"):
            tensor = node.attribute[0].t
            if tensor.data_type == TensorProto.FLOAT and np.allclose(numpy_helper.to_array(tensor), 0.044715):
                tensor.CopyFrom(numpy_helper.from_array(np.array(0.05, np.float32)))
                return edit.proto
    raise LookupError("no 0.044715 in encoder block 1")


class Hidden(nn.Module):
    """A model without a language-model head: two inputs, the last hidden state."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export_hidden(model):
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(2, 64, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    axes = {name: AXES["input_ids"] for name in (*inputs, "last_hidden_state")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(Hidden(model), path, inputs, ["last_hidden_state"], exporter="torchscript", opset=17, axes=axes)
        return onnx.load(path)


def bert():
    """An encoder-only model of another family."""
    torch.manual_seed(0)
    return export_hidden(BertModel(BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, attn_implementation="eager",
    )))


def no_cross_attention():
    """T5's encoder alone: no decoder, no cross-attention, no head."""
    torch.manual_seed(0)
    return export_hidden(T5EncoderModel(backbone_config(SMALL)))


REFUSED = (unknown_activation, extra_consumer, missing_residual, two_heads, gelu_scale, bert, no_cross_attention)


def write_refused():
    """Each model must be sound ONNX: what refuses it is the compiler, not the runtime."""
    folder = HERE / "refused"
    folder.mkdir(exist_ok=True)
    for make in REFUSED:
        path = folder / f"{make.__name__}.onnx"
        proto = make()
        onnx.checker.check_model(proto, full_check=True)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        output = run_onnx(path, draw_batch(SMALL))
        assert output.isfinite().all(), make.__name__
        print(f"refused/{make.__name__:20} runs: {list(output.shape)}  {path.stat().st_size // 1024} KB", flush=True)


# ------------------------------------------------------------------------------------------------ real-size shapes


@dataclasses.dataclass
class Real:
    """The dimensions of a published T5 and how its graph is exported."""

    name: str
    d_model: int
    d_kv: int
    d_ff: int
    heads: int
    blocks: int
    exporter: str
    opset: int
    vocab: int = 32128


REAL = [
    Real("t5_base", 768, 64, 3072, 12, 12, "torchscript", 17),
    Real("t5_large", 1024, 64, 4096, 16, 24, "dynamo", 18),
    Real("t5_3b", 1024, 128, 16384, 32, 24, "dynamo", 18),
]


def narrow(real):
    """The same graph at widths that fit anywhere, and what each width stands for.

    Widths are numbers that occur nowhere else in the graph. The embedding has more than 8192 elements, as dynamo's
    optimiser treats smaller tensors differently.
    """
    case = Case(real.name, layers=(real.blocks, real.blocks), d_model=53, d_kv=13, d_ff=59, heads=real.heads,
                vocab=211, exporter=real.exporter, opset=real.opset)
    widths = {case.d_model: real.d_model, case.d_kv: real.d_kv, case.d_ff: real.d_ff, case.vocab: real.vocab,
              case.heads * case.d_kv: real.heads * real.d_kv}
    return case, widths


def widen_tensor(tensor, widths, scales, end):
    """One initializer or constant at full size; weights become references. The new end of weights.bin."""
    value = numpy_helper.to_array(tensor)
    if value.dtype == np.float32 and value.size > 16:
        dims = [widths.get(dim, dim) for dim in value.shape]
        length = 4 * int(np.prod(dims, dtype=np.int64))
        offset = -(-end // 4096) * 4096
        reference = TensorProto(name=tensor.name, dims=dims, data_type=TensorProto.FLOAT)
        reference.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
            reference.external_data.add(key=key, value=text)
        tensor.CopyFrom(reference)
        return offset + length
    assert value.size <= 16 or value.dtype == bool, (tensor.name, value.shape)
    if value.dtype == np.int64:
        wide = np.array([widths.get(int(n), int(n)) for n in value.ravel()], np.int64).reshape(value.shape)
    elif value.dtype == np.float32:
        wide = np.array([scales.get(float(n), n) for n in value.ravel()], np.float32).reshape(value.shape)
    else:
        return end
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return end


def widen(proto, real, widths):
    """Puts the real dimensions into a narrow model, in place; returns the size that weights.bin must have."""
    scales = {float(np.float32(53**-0.5)): np.float32(real.d_model**-0.5)}
    constants = [node.attribute[0].t for node in proto.graph.node if node.op_type == "Constant"]
    end = 0
    for tensor in [*proto.graph.initializer, *constants]:
        end = widen_tensor(tensor, widths, scales, end)
    for value in [*proto.graph.value_info, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_value = widths.get(dim.dim_value, dim.dim_value)
    return end


def write_shapes():
    folder = HERE / "shapes"
    folder.mkdir(exist_ok=True)
    for real in REAL:
        case, widths = narrow(real)
        path = folder / f"{real.name}.onnx"
        with tempfile.TemporaryDirectory() as scratch:
            export_case(case, build_backbone(case), draw_batch(case), Path(scratch))
            proto = onnx.load(Path(scratch) / "model.onnx")
        size = widen(proto, real, widths)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        runs = run_with_random_weights(path, size, real) if real.name == "t5_base" else "not run"
        print(f"shapes/{real.name:9} {len(proto.graph.node)} nodes, weights.bin {size:,} bytes, {runs}"
              f"  {path.stat().st_size // 1024} KB", flush=True)


def run_with_random_weights(path, size, real):
    """Fills a weights.bin in a temporary folder and runs the model on it: the shapes fit together."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / path.name).write_bytes(path.read_bytes())
        draw = np.random.default_rng(0)
        with open(Path(scratch) / "weights.bin", "wb") as weights:
            for start in range(0, size, 1 << 24):
                count = min(1 << 24, size - start) // 4
                weights.write((0.05 * draw.standard_normal(count, np.float32)).tobytes())
        batch = draw_batch(dataclasses.replace(SMALL, vocab=real.vocab))
        logits = run_onnx(Path(scratch) / path.name, batch)
    assert logits.shape == (*batch["decoder_input_ids"].shape, real.vocab) and logits.isfinite().all()
    return f"runs: {list(logits.shape)}"


# --------------------------------------------------------------------------------------------------------- main


def main(wanted):
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for case in CASES:
        if not wanted or case.name in wanted:
            write_case(case)
    if not wanted or "refused" in wanted:
        write_refused()
    if not wanted or "shapes" in wanted:
        write_shapes()


if __name__ == "__main__":
    main(sys.argv[1:])
