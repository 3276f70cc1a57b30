"""What lstc is compared with on a GPU: one training step of other methods in PyTorch, at T5-base's sizes.

    python benches/cuda_peers.py                                f32 and bf16, in this process
    python benches/cuda_peers.py --precisions tf32 --graphs     others
    python benches/cuda_peers.py --self-test                    the methods, small, on the CPU

Prints one JSON object a row. The T5 is written here, in plain PyTorch: nothing but `torch` is needed. As in `peers.py`, each choice
favours the peers: no dropout, no padding and no masks for it, PyTorch's fused attention, norms and AdamW, and no method computes
what it does not need. `torch.compile` is left out: compiling all rows takes longer than a run may.

f32 is without TF32, tf32 with it. In bf16, frozen weights lie in bf16, and what is trained lies in f32 and is computed under
autocast. With --graphs, a whole step (forward, backward, clipping, AdamW) is captured once as a CUDA graph and replayed.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import statistics
import sys
import time

import torch
from shapes import SHAPES
from torch import nn
from torch.nn import functional as F

BUCKETS, FARTHEST = 32, 128  # of relative positions
WARM_UP, GROUPS, GROUP = 4, 5, 5  # steps; within a group nothing waits for the device
REDUCTION, RANK = 8, 32


# ------------------------------------------------------------------------------------------------------------- T5


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=1e-6)


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        inner = shape.heads * shape.d_kv
        self.heads = shape.heads
        self.q, self.k, self.v = (nn.Linear(shape.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, shape.d_model, bias=False)

    def forward(self, x, source, bias=None):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q(x), self.k(source), self.v(source)))
        bias = None if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, shape, decoder):
        super().__init__()
        self.attention, self.norm = Attention(shape), Norm(shape.d_model)
        if decoder:
            self.cross_attention, self.cross_norm = Attention(shape), Norm(shape.d_model)
        self.wi = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.wo = nn.Linear(shape.d_ff, shape.d_model, bias=False)
        self.last_norm = Norm(shape.d_model)

    def forward(self, x, bias, encoded=None):
        normed = self.norm(x)
        x = x + self.attention(normed, normed, bias)
        if encoded is not None:
            x = x + self.cross_attention(self.cross_norm(x), encoded)
        return x + self.wo(F.relu(self.wi(self.last_norm(x))))


def buckets(length, decoder):
    """The bucket of each distance from a query (row) to a key: half of them exact, the others logarithmic."""
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    count = BUCKETS if decoder else BUCKETS // 2
    offset = 0 if decoder else (distance > 0) * count
    distance = -distance.clamp(max=0) if decoder else distance.abs()
    exact = count // 2
    far = exact + (distance.clamp(min=1) / exact).log() / math.log(FARTHEST / exact) * (count - exact)
    return offset + torch.where(distance < exact, distance, far.long().clamp(max=count - 1))


class Stack(nn.Module):
    """The blocks of a tower and what they share."""

    def __init__(self, shape, length, decoder):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(BUCKETS, shape.heads))
        self.blocks = nn.ModuleList(Block(shape, decoder) for _ in range(shape.layers))
        self.norm = Norm(shape.d_model)
        causal = torch.full((length, length), -torch.inf).triu(1) if decoder else torch.zeros(length, length)
        self.register_buffer("places", F.one_hot(buckets(length, decoder), BUCKETS).to(causal), persistent=False)
        self.register_buffer("causal", causal, persistent=False)

    def position_bias(self):
        # As a product: the gradient of a lookup would be sorted.
        return (self.places @ self.bias).permute(2, 0, 1)[None] + self.causal

    def forward(self, x, encoded=None, taps=None):
        bias = self.position_bias()
        kept = [x]
        for block in self.blocks:
            x = block(x, bias, encoded)
            kept.append(x)
        if taps is not None:
            taps.extend(kept)
        return self.norm(x)


class T5(nn.Module):
    """An encoder-decoder with ReLU and a tied head, from (input_ids, decoder_input_ids) to logits."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.shared = nn.Embedding(shape.vocabulary, shape.d_model)
        self.encoder = Stack(shape, shape.source, decoder=False)
        self.decoder = Stack(shape, shape.target, decoder=True)

    def forward(self, input_ids, decoder_input_ids):
        encoded = self.encoder(self.shared(input_ids))
        hidden = self.decoder(self.shared(decoder_input_ids), encoded)
        return F.linear(hidden * self.shape.d_model**-0.5, self.shared.weight)


# -------------------------------------------------------------------------------------------------------- methods


class LowRank(nn.Module):
    """y = W x + (alpha / r) B A x, with W frozen; B starts at zero."""

    def __init__(self, frozen, rank):
        super().__init__()
        self.frozen = frozen
        self.scale = 2.0  # alpha is twice the rank
        self.a = nn.Linear(frozen.in_features, rank, bias=False)
        self.b = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.frozen(x) + self.scale * self.b(self.a(x))


def lora(backbone):
    """LoRA (Hu et al., arXiv 2106.09685) on q and v of every attention."""
    for attention in [module for module in backbone.modules() if isinstance(module, Attention)]:
        attention.q, attention.v = LowRank(attention.q, RANK), LowRank(attention.v, RANK)
    return backbone


class SideStack(Stack):
    """One ladder: s_0 = W_first e + b_first; s_i = Block_i(g_i s_(i-1) + (1 - g_i)(W_i h_i + b_i))."""

    def __init__(self, shape, side, length, decoder):
        super().__init__(side, length, decoder)
        self.down = nn.ModuleList(nn.Linear(shape.d_model, side.d_model) for _ in range(shape.layers + 1))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(shape.layers))

    def forward(self, taps, encoded=None):
        bias = self.position_bias()
        state = self.down[0](taps[0])
        for tap, down, alpha, block in zip(taps[1:], self.down[1:], self.gates, self.blocks, strict=True):
            gate = torch.sigmoid(alpha / 0.1).to(state.dtype)
            state = block(torch.lerp(down(tap), state, gate), bias, encoded)
        return self.norm(state)


class LadderSideTuning(nn.Module):
    """Ladder Side-Tuning (Sung, Cho, Bansal, arXiv 2206.06522): no gradient enters the backbone, which stops before its head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, shape = backbone, backbone.shape
        narrow = {part: getattr(shape, part) // REDUCTION for part in ("d_model", "d_kv", "d_ff")}
        side = dataclasses.replace(shape, **narrow)
        self.encoder = SideStack(shape, side, shape.source, decoder=False)
        self.decoder = SideStack(shape, side, shape.target, decoder=True)
        self.up = nn.Linear(side.d_model, shape.d_model)

    def forward(self, input_ids, decoder_input_ids):
        backbone, source, target = self.backbone, [], []
        with torch.no_grad():
            encoded = backbone.encoder(backbone.shared(input_ids), taps=source)
            backbone.decoder(backbone.shared(decoder_input_ids), encoded, taps=target)
        side = self.decoder(target, self.encoder(source))
        return F.linear(self.up(side) * backbone.shape.d_model**-0.5, backbone.shared.weight)


METHODS = {
    "forward": ("forward pass alone", lambda backbone: backbone),
    "full": ("full fine-tuning", lambda backbone: backbone),
    "lora": (f"LoRA r={RANK} on q and v", lora),
    "lst": (f"LST r={REDUCTION}", LadderSideTuning),
}
PRECISIONS = ("f32", "tf32", "bf16")


def build(method, precision, shape, device):
    torch.manual_seed(0)
    with torch.device(device):
        backbone = T5(shape)
        if method != "full":
            backbone.requires_grad_(False)
            if precision == "bf16":
                backbone.to(torch.bfloat16)
        return METHODS[method][1](backbone)


def trained(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def draw_batch(shape, device):
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, shape.vocabulary, (shape.batch, shape.source), generator=draw).to(device)
    labels = torch.randint(3, shape.vocabulary, (shape.batch, shape.target), generator=draw).to(device)
    return input_ids, F.pad(labels[:, :-1], (1, 0)), labels


def stepper(model, method, precision, batch, device, graphs):
    """A function that makes one step; its loss, on the device."""
    input_ids, decoder_input_ids, labels = batch
    casts = precision == "bf16" and method != "forward"
    autocast = torch.autocast(device, torch.bfloat16, enabled=casts, cache_enabled=not graphs)
    if method == "forward":
        return torch.inference_mode()(lambda: model(input_ids, decoder_input_ids))
    weights = trained(model)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True, capturable=graphs)

    def step():
        with autocast:
            loss = F.cross_entropy(model(input_ids, decoder_input_ids).flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def captured(step):
    """The step as a CUDA graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


# --------------------------------------------------------------------------------------------------- measurements


def measure(method, precision, shape, graphs):
    """One row, on the GPU."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    model = build(method, precision, shape, "cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = stepper(model, method, precision, draw_batch(shape, "cuda"), "cuda", graphs)
    step = captured(step) if graphs else step
    for _ in range(WARM_UP):
        last = step()
    seconds = []
    for _ in range(GROUPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(GROUP):
            last = step()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / GROUP)
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return {
        "median": statistics.median(seconds), "seconds": seconds, "loss": None if method == "forward" else last.item(),
        "trainable": 0 if method == "forward" else sum(weight.numel() for weight in trained(model)),
        "allocated": torch.cuda.max_memory_allocated(), "held": torch.cuda.max_memory_reserved(),
        "device": torch.cuda.max_memory_reserved() + beside,  # with CUDA's context, and what others have
    }


def report(args):
    """One row after the other; what fails is reported, and the others continue."""
    end = time.monotonic() + args.budget
    rows = [(p, m, b) for p in args.precisions for b in args.batch for m in args.methods if not (args.graphs and m == "forward")]
    for precision, method, batch in rows:
        start = time.monotonic()
        row = {"method": method, "label": METHODS[method][0], "precision": precision}
        row |= {"graphs": "on" if args.graphs else "off", "batch": batch}
        if start > end:
            row["error"] = "not measured: out of time"
        else:
            try:
                row |= measure(method, precision, dataclasses.replace(SHAPES["t5-base"], batch=batch), args.graphs)
            except RuntimeError as error:  # out of memory is one, too
                row["error"] = f"not measured: {next(iter(str(error).splitlines()), 'no reason given')}"
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
        print(json.dumps(row | {"torch": torch.__version__, "took": time.monotonic() - start}), flush=True)


def agrees_with_transformers(shape):
    """Largest difference of logits from those of `transformers`, or none where that is not installed."""
    try:
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError:
        return None
    theirs = T5ForConditionalGeneration(T5Config(
        vocab_size=shape.vocabulary, d_model=shape.d_model, d_kv=shape.d_kv, d_ff=shape.d_ff, num_heads=shape.heads,
        num_layers=shape.layers, dropout_rate=0.0, decoder_start_token_id=0,
    )).eval()
    ours = T5(shape)

    def parted(model):
        """Tables of positions, and all others, in their order."""
        named = list(model.named_parameters())
        tables = [weight for name, weight in named if "bias" in name]
        return tables, [weight for name, weight in named if "bias" not in name]

    with torch.no_grad():
        for mine, other in zip(parted(ours), parted(theirs), strict=True):
            for to, given in zip(mine, other, strict=True):
                to.copy_(given)
        input_ids, decoder_input_ids, _ = draw_batch(shape, "cpu")
        expected = theirs(input_ids=input_ids, decoder_input_ids=decoder_input_ids, use_cache=False).logits
        return ((ours(input_ids, decoder_input_ids) - expected).abs().max() / expected.abs().max()).item()


def self_test():
    """Counts of parameters at T5-base's sizes; a loss that falls, and what is frozen, at small ones."""
    for method, count in {"full": 222_903_552, "lora": 3_538_944, "lst": 5_097_240}.items():
        found = sum(weight.numel() for weight in trained(build(method, "f32", SHAPES["t5-base"], "meta")))
        assert found == count, f"{method}: {found} parameters, not {count}"
    small = dataclasses.replace(SHAPES["t5-nano"], batch=4, source=150, target=6)
    difference = agrees_with_transformers(small)
    assert difference is None or difference < 1e-5, f"logits are off by {difference}"
    print(f"transformers: {'not installed' if difference is None else f'logits {difference:.1e} apart'}")
    for precision in PRECISIONS:
        for method in METHODS:
            model = build(method, precision, small, "cpu")
            frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
            step = stepper(model, method, precision, draw_batch(small, "cpu"), "cpu", graphs=False)
            values = [step() for _ in range(1 if method == "forward" else 12)]
            assert all(value.isfinite().all() for value in values), (method, precision)
            assert method == "forward" or values[-1] < values[0], (method, precision, values)
            now = dict(model.named_parameters())
            assert all(torch.equal(now[name], weight) for name, weight in frozen.items()), (method, precision)
            falls = "" if method == "forward" else f"loss {values[0]:.4f} to {values[-1]:.4f}"
            print(f"{precision:5} {method:8} {falls}")
    print("all well")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 100])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=["f32", "bf16"])
    parser.add_argument("--graphs", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--budget", type=float, default=300, help="seconds after which no further row is begun")
    parser.add_argument("--self-test", action="store_true", help="check the methods on the CPU, and stop")
    args = parser.parse_args()
    if args.self_test:
        self_test()
    elif not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    else:
        report(args)


if __name__ == "__main__":
    main()
