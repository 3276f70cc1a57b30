"""What PyTorch makes of Ladder Side-Tuning on a backbone of the matrix: logits, loss, the gradient of every parameter.

Computed in fp64 by the side network of tests/cases/make.py, stored in fp32. All blocks are kept, gates are learnable.

The hidden states of an f32, f16 or bf16 model are those of the PyTorch model in fp64: its weights are the same numbers in
all three. Those of a quantised model are its own, as ONNX Runtime gives them with its optimiser off: rounding of
activations is a part of what such a model computes, and no float model has it.
"""

import torch
from safetensors.torch import save_file
from torch import nn

from backbones import build, cases


def side_of(backbone, model, scale):
    """The side network on a grid, as the backbone's weights are. `scale`: of what the LM head reads."""
    side = cases.LadderSideNetwork(backbone, model)
    side.scale = scale
    cases.initialise(backbone, side)
    with torch.no_grad():
        for weight in side.parameters():
            weight.copy_((128 * weight).round().div(128))
    return side


def taps_of(backbone, model, batch):
    """Hidden states in fp64, and the backbone's logits."""
    taps, logits = cases.run_backbone(cases.in_fp64(model), batch)
    return taps, logits


def expected(backbone, taps=None, head=None, scale=None):
    """Batch, side network, logits, loss and gradients. `taps`, `head` and `scale` replace the PyTorch model's own."""
    model, batch = build(backbone), cases.draw_batch(backbone)
    if head is not None:
        model.lm_head = nn.Linear(*reversed(head.shape), bias=False, dtype=head.dtype)
        with torch.no_grad():
            model.lm_head.weight.copy_(head)
    if taps is None:
        taps, _ = taps_of(backbone, model, batch)
    drawn = side_of(backbone, model, backbone.head_scale if scale is None else scale)
    side = cases.in_fp64(drawn)
    logits = side({name: tap.double() for name, tap in taps.items()}, batch)
    loss = cases.loss_of(backbone, logits, batch["labels"], None)
    loss.backward()
    vanished = [name for name, weight in side.named_parameters() if not weight.grad.any()]
    assert not vanished, vanished
    return {
        **batch, "logits": logits.detach(), "loss": loss.detach(),
        **{f"side.{name}": weight.detach() for name, weight in drawn.named_parameters()},
        **{f"grad.{name}": weight.grad for name, weight in side.named_parameters()},
    }


def results(tensors):
    """Without batch and side network."""
    return {name: value for name, value in tensors.items() if name in ("logits", "loss") or name.startswith("grad.")}


def write(tensors, path):
    save_file({name: value.float().contiguous() if value.is_floating_point() else value.contiguous()
               for name, value in tensors.items()}, path)
