"""Exports the T5 of a shape to ONNX, weights in a file beside it: python benches/export.py t5-base t5.onnx"""

import logging
import sys
import warnings

import torch
from peers import build_backbone
from shapes import MODELS


class Logits(torch.nn.Module):
    """The plain backbone as a user exports it: three inputs, one output, no cache."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits


def export(shape, file):
    model = Logits(build_backbone(shape, attention="eager")).eval()
    batch, source, target = torch.export.dims("batch", "source", "target")
    # A tensor for each input: the exporter takes one that is given twice for one input.
    ids, mask, target_ids = (torch.ones(2, length, dtype=torch.int64) for length in (8, 8, 5))
    torch.onnx.export(
        model, (ids, mask, target_ids), file, dynamo=True, external_data=True, verbose=False,
        input_names=["input_ids", "attention_mask", "decoder_input_ids"], output_names=["logits"],
        dynamic_shapes=({0: batch, 1: source}, {0: batch, 1: source}, {0: batch, 1: target}),
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    export(MODELS[sys.argv[1]], sys.argv[2])
