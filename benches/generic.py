"""A side network's training step as plain ONNX nodes by a generic decomposition: what lstc's own step is compared with.

    python benches/generic.py t5-base step.onnx

The side network of `peers.py` as a function of taps, mask, labels, parameters, moments, learning rate and step;
differentiated by `torch.func`, decomposed into core ATen operators, and exported by PyTorch's own exporter, which
optimises what it writes; for T5-base that takes ten minutes. Shapes are constants, which favours it. Names are those of
lstc's `train.onnx`. The step is run once on ONNX Runtime and compared with PyTorch's autograd, clipping and AdamW;
`step.json` says how far they are apart, and is written only if that is near enough.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path

import torch
from bare import Session
from peers import LOWEST, STACKS, SideNetwork, causal_mask, configure, cross_entropy, draw_batch
from shapes import MODELS
from torch import nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.func import functional_call, functionalize, grad_and_value

REDUCTION = 8
BETA1, BETA2, EPSILON, CLIP = 0.9, 0.999, 1e-8, 1.0
# How far ONNX Runtime may be from PyTorch, of a value's norm: loss and norm of the gradient, the median value, the worst.
# Among millions of ReLUs a few inputs lie so near to 0 that rounding decides, and each moves one row of a gradient.
NEAR = {"loss": 1e-5, "grad_norm": 1e-4, "median": 1e-4, "worst": 2e-2}


def logits(side, head, taps, mask):
    length = taps["decoder"][0].shape[1]
    padding = (1.0 - mask)[:, None, None] * LOWEST
    return side(taps, causal_mask(length), padding, head)


def training_step(side, head):
    """The step as a function of flat arguments: taps and mask, labels, lr, step, then parameters, m and v of each."""
    names = [name for name, _ in side.named_parameters()]
    taps = {stack: len(getattr(side, stack).side_block) + 1 for stack in STACKS}

    def loss_of(parameters, taps, mask, labels):
        found = functional_call(_Call(side, head), {f"side.{n}": p for n, p in parameters.items()}, (taps, mask))
        return cross_entropy(found, labels)

    def step(*flat):
        flat = list(flat)
        take = lambda count: [flat.pop(0) for _ in range(count)]
        read = {stack: take(count) for stack, count in taps.items()}
        mask, labels, lr, number = take(4)
        weights, first, second = (take(len(names)) for _ in range(3))
        gradients, loss = grad_and_value(loss_of)(dict(zip(names, weights)), read, mask, labels)
        gradients = [gradients[name] for name in names]
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        gradients = [g * scale for g in gradients]
        first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(first, gradients)]
        second = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(second, gradients)]
        to_first, to_second = 1 - BETA1**number, 1 - BETA2**number
        weights = [
            w - lr * (m / to_first) / ((v / to_second).sqrt() + EPSILON) for w, m, v in zip(weights, first, second)
        ]
        return (loss, norm, *weights, *first, *second)

    return step


class _Call(nn.Module):
    """`logits` as a module, for `functional_call`."""

    def __init__(self, side, head):
        super().__init__()
        self.side, self.head = side, head

    def forward(self, taps, mask):
        return logits(self.side, self.head, taps, mask)


def draw_arguments(shape, side):
    """Names and values of the step's arguments, in the middle of a run.

    At its first step AdamW moves every weight by the learning rate, whichever way rounding turns the smallest gradient.
    """
    draw = torch.Generator().manual_seed(0)
    length = {"encoder": shape.source, "decoder": shape.target}
    arguments = {
        f"taps/{stack}/{index}": torch.randn(shape.batch, length[stack], shape.d_model, generator=draw)
        for stack in STACKS
        for index in range(shape.layers + 1)
    }
    arguments |= {
        "mask": torch.ones(shape.batch, shape.source), "labels": draw_batch(shape)[1], "lr": torch.tensor(1e-3),
        "step": torch.tensor(10.0),
    }
    weights = {name: weight.detach().clone() for name, weight in side.named_parameters()}
    arguments |= weights
    for moment, value in (("m", 0.0), ("v", 1e-6)):
        arguments |= {f"adam.{moment}/{name}": torch.full_like(weight, value) for name, weight in weights.items()}
    return arguments


def export(shape, file):
    """Writes the step, and returns its arguments and what PyTorch's own step makes of them."""
    torch.manual_seed(0)
    side = SideNetwork(configure(shape, attention="eager"), REDUCTION)
    head = torch.randn(shape.vocabulary, shape.d_model, generator=torch.Generator().manual_seed(1))
    arguments = draw_arguments(shape, side)
    values = tuple(arguments.values())
    table = core_aten_decompositions()
    # The exporter has no such operator. What it makes is only ever filled.
    table[torch.ops.aten.empty_permuted.default] = lambda size, order, **options: torch.zeros(size)
    traced = make_fx(functionalize(training_step(side, head)), table)(*values)
    state = list(arguments)[list(arguments).index("step") + 1 :]
    torch.onnx.export(
        traced, values, file, dynamo=True, external_data=True, verbose=False, optimize=True,
        input_names=list(arguments), output_names=["loss", "grad_norm", *(f"{name}.next" for name in state)],
    )
    return arguments, autograd_step(side, head, arguments)


def autograd_step(side, head, arguments):
    """What PyTorch's autograd, clipping and AdamW make of the same arguments."""
    optimizer = torch.optim.AdamW(side.parameters(), lr=arguments["lr"].item(), weight_decay=0.0, eps=EPSILON)
    for name, weight in side.named_parameters():
        optimizer.state[weight] = {
            "step": arguments["step"] - 1, "exp_avg": arguments[f"adam.m/{name}"].clone(),
            "exp_avg_sq": arguments[f"adam.v/{name}"].clone(),
        }
    taps = {stack: [value for name, value in arguments.items() if name.startswith(f"taps/{stack}/")] for stack in STACKS}
    loss = cross_entropy(logits(side, head, taps, arguments["mask"]), arguments["labels"])
    loss.backward()
    norm = nn.utils.clip_grad_norm_(side.parameters(), CLIP)
    optimizer.step()
    found = {"loss": loss.detach(), "grad_norm": norm}
    for name, weight in side.named_parameters():
        state = optimizer.state[weight]
        found |= {f"{name}.next": weight.detach(), f"adam.m/{name}.next": state["exp_avg"]}
        found[f"adam.v/{name}.next"] = state["exp_avg_sq"]
    return found


def apart(file, arguments, expected, threads=2):
    """How far ONNX Runtime's step is from PyTorch's."""
    session = Session(file, threads)
    session.bind({name: value.numpy() for name, value in arguments.items()})
    session.run()
    far = {}
    for name, value in session.outputs().items():
        wanted = expected[name]
        far[name] = ((torch.from_numpy(value) - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()
    worst = max(far, key=far.get)
    return {
        "loss": far["loss"], "grad_norm": far["grad_norm"], "median": statistics.median(far.values()), "worst": far[worst],
        "worst_value": worst, "values": len(far),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=MODELS)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    arguments, expected = export(MODELS[args.shape], args.file)
    found = apart(args.file, arguments, expected)
    print(json.dumps(found))
    if any(found[key] > most for key, most in NEAR.items()):
        raise SystemExit(f"error: that is too far from PyTorch's own step: at most {NEAR}")
    args.file.with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
