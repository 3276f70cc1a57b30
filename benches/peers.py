"""What lstc is measured beside: one training step of other methods in PyTorch, fp32, on the CPU.

    python benches/peers.py                          all rows, each in a process of its own
    python benches/peers.py --row lst --steps 7      one row, in this process

Prints one JSON object a row. Peak memory is the process's VmHWM: everything that was resident, from the interpreter to
the optimizer's moments.

The same for every row: dropout is off, attention is PyTorch's fused one, AdamW is PyTorch's fused one, gradients are
clipped to a global norm of 1, and no method computes what it does not need. Each of these favours the peers.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from shapes import SHAPES
from torch import nn
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm

WARM_UP = 2
STACKS = ("encoder", "decoder")
LOWEST = torch.finfo(torch.float32).min


def configure(shape, attention="sdpa"):
    return T5Config(
        vocab_size=shape.vocabulary, d_model=shape.d_model, d_kv=shape.d_kv, d_ff=shape.d_ff, num_heads=shape.heads,
        num_layers=shape.layers, num_decoder_layers=shape.layers, dropout_rate=0.0, decoder_start_token_id=0,
        attn_implementation=attention,
    )


def build_backbone(shape, attention="sdpa"):
    """A T5 of this shape with random weights, always the same.

    Memory is allocated once, and for one embedding, so that building the model does not set the process's peak.
    """
    config = configure(shape, attention)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    model.to_empty(device="cpu").tie_weights()
    torch.manual_seed(0)
    model.apply(model._init_weights)
    return model.eval()


# ------------------------------------------------------------------------------------------------------ methods
#
# A method turns a backbone into a module from (input_ids, attention_mask, decoder_input_ids) to logits. What it trains
# are the parameters that require a gradient.


class FullFineTuning(nn.Module):
    """The backbone itself, all of it trainable."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        return self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits


class LowRank(nn.Module):
    """y = W x + (alpha / r) B A x, with W frozen; B starts at zero."""

    def __init__(self, frozen, rank, alpha):
        super().__init__()
        self.frozen = frozen
        self.scale = alpha / rank
        self.a = nn.Linear(frozen.in_features, rank, bias=False)
        self.b = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.frozen(x) + self.scale * self.b(self.a(x))


class LoRA(FullFineTuning):
    """LoRA (Hu et al., arXiv 2106.09685) on q and v of every attention."""

    def __init__(self, backbone, rank, alpha=None):
        super().__init__(backbone.requires_grad_(False))
        attentions = [m for m in backbone.modules() if isinstance(getattr(m, "q", None), nn.Linear)]
        for attention in attentions:
            attention.q = LowRank(attention.q, rank, alpha or 2 * rank)
            attention.v = LowRank(attention.v, rank, alpha or 2 * rank)


class SideStack(nn.Module):
    """One ladder: s_0 = W_first e + b_first; s'_i = g_i s_(i-1) + (1 - g_i)(W_i h_i + b_i); s_i = SideBlock_i(s'_i)."""

    def __init__(self, config, reduction):
        super().__init__()
        side = copy.deepcopy(config)
        side.d_model //= reduction
        side.d_ff //= reduction
        side.d_kv //= reduction
        layers = range(config.num_layers)
        self.side_first_downsample = nn.Linear(config.d_model, side.d_model)
        self.side_downsamples = nn.ModuleList(nn.Linear(config.d_model, side.d_model) for _ in layers)
        self.side_gate_params = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in layers)
        self.side_block = nn.ModuleList(T5Block(side, i == 0, layer_idx=i) for i in layers)
        self.final_side_layer_norm = T5LayerNorm(side.d_model, eps=side.layer_norm_epsilon)

    def forward(self, taps, mask, encoded=None, encoded_mask=None):
        state = self.side_first_downsample(taps[0])
        position_bias = cross_bias = None
        rungs = zip(taps[1:], self.side_downsamples, self.side_gate_params, self.side_block, strict=True)
        for tap, down, alpha, block in rungs:
            gate = torch.sigmoid(alpha / 0.1)
            state = torch.lerp(down(tap), state, gate)
            state, position_bias, cross_bias = block(state, mask, position_bias, encoded, encoded_mask, cross_bias)
        return self.final_side_layer_norm(state)


class SideNetwork(nn.Module):
    """Both ladders and the head: from taps to logits. Learnable gates, biases, no dropped blocks."""

    def __init__(self, config, reduction):
        super().__init__()
        for stack in STACKS:
            of = copy.deepcopy(config)
            of.is_decoder = stack == "decoder"
            of.num_layers = config.num_decoder_layers if of.is_decoder else config.num_layers
            self.add_module(stack, SideStack(of, reduction))
        self.side_final_upsample = nn.Linear(config.d_model // reduction, config.d_model)
        self.scale = config.d_model**-0.5  # of a tied head
        self.initialise()

    def initialise(self):
        """Side blocks at 1/sqrt(fan-in), projections at 0.01 with zero biases, gates at one half."""
        for name, weight in self.named_parameters():
            if weight.ndim != 2:
                continue
            projection = "downsample" in name or "upsample" in name
            nn.init.normal_(weight, std=0.01 if projection else weight.shape[1] ** -0.5)
            if projection:
                nn.init.zeros_(self.get_parameter(name.replace("weight", "bias")))

    def forward(self, taps, causal, padding, head):
        """`taps` of each stack; the masks that are added to the scores; the head's weight [vocabulary, d]."""
        side = self.encoder(taps["encoder"], padding)
        side = self.decoder(taps["decoder"], causal, side, padding)
        return F.linear(self.side_final_upsample(side) * self.scale, head)


class LadderSideTuning(nn.Module):
    """Ladder Side-Tuning (Sung, Cho, Bansal, arXiv 2206.06522).

    The backbone runs without a graph and stops before its LM head; of its activations only the taps are kept.
    """

    def __init__(self, backbone, reduction):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.side = SideNetwork(backbone.config, reduction)
        self.taps = {stack: [] for stack in STACKS}
        for stack in STACKS:
            blocks = getattr(backbone, stack).block
            blocks[0].register_forward_pre_hook(self.keep(stack, lambda inputs: inputs[0]))
            for block in blocks:
                block.register_forward_hook(self.keep(stack, lambda inputs, output: output[0]))

    def keep(self, stack, pick):
        """A hook that appends what `pick` takes from a block's values to the stack's taps."""

        def hook(_module, *values):
            self.taps[stack].append(pick(*values))

        return hook

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        with torch.no_grad():
            encoded = self.backbone.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            self.backbone.decoder(
                input_ids=decoder_input_ids, encoder_hidden_states=encoded, encoder_attention_mask=attention_mask,
                use_cache=False,
            )
        taps, self.taps = self.taps, {stack: [] for stack in STACKS}
        padding = None if attention_mask.all() else (1.0 - attention_mask)[:, None, None] * LOWEST
        return self.side(taps, causal_mask(decoder_input_ids.shape[1]), padding, self.backbone.lm_head.weight)


def causal_mask(length):
    return torch.full((length, length), LOWEST).triu(1)[None, None]


def trainable(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def count(weights):
    return sum(weight.numel() for weight in weights)


def cross_entropy(logits, labels):
    """The mean over labels that are not -100."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


class Trainer:
    """Forward, backward, clipping, AdamW."""

    def __init__(self, model, lr):
        self.model = model
        self.weights = trainable(model)
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, weight_decay=0.0, fused=True)

    def step(self, inputs, labels):
        loss = cross_entropy(self.model(**inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


# ------------------------------------------------------------------------------------------------- measurements

ROWS = {
    "forward": ("forward alone", FullFineTuning),
    "full": ("full fine-tuning", FullFineTuning),
    "lora": ("LoRA r=32 on q and v", lambda backbone: LoRA(backbone, 32)),
    "lst": ("LST r=8", lambda backbone: LadderSideTuning(backbone, 8)),
}


def draw_batch(shape):
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, shape.vocabulary, (shape.batch, shape.source), generator=draw)
    labels = torch.randint(3, shape.vocabulary, (shape.batch, shape.target), generator=draw)
    decoder_input_ids = F.pad(labels[:, :-1], (1, 0))
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "decoder_input_ids": decoder_input_ids}
    return inputs, labels


def peak_memory():
    """This process's peak of resident memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure(row, shape_name, steps, threads):
    """One row, in this process."""
    torch.set_num_threads(threads)
    shape = SHAPES[shape_name]
    label, method = ROWS[row]
    model = method(build_backbone(shape))
    inputs, labels = draw_batch(shape)
    built = peak_memory()
    if row == "forward":
        context, step = torch.inference_mode(), lambda: model(**inputs)
    else:
        context, trainer = contextlib.nullcontext(), Trainer(model, lr=1e-4)
        step = lambda: trainer.step(inputs, labels)
    seconds = []
    with context:
        for _ in range(WARM_UP + steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return {
        "row": row, "label": label, "shape": shape_name, "threads": threads,
        "trainable": 0 if row == "forward" else count(trainable(model)),
        "median": statistics.median(seconds[WARM_UP:]), "seconds": seconds[WARM_UP:],
        "peak_memory": peak_memory(), "peak_before_steps": built,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def command(row, shape, steps, threads):
    """The command that measures one row in a process of its own."""
    options = {"--row": row, "--shape": shape, "--steps": steps, "--threads": threads}
    return [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]


def environment(threads):
    """The environment for `command`: no larger thread pool."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--row", choices=ROWS, help="measure this row, in this process; default: all, each in its own")
    parser.add_argument("--shape", choices=SHAPES, default="t5-base")
    parser.add_argument("--steps", type=int, default=7, help=f"measured steps, after {WARM_UP} that are not")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.shape, args.steps, args.threads)))
        return
    for row in ROWS:
        subprocess.run(command(row, args.shape, args.steps, args.threads), env=environment(args.threads), check=True)


if __name__ == "__main__":
    main()
