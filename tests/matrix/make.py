"""Writes the fixtures of this folder: T5s as people have them, and what PyTorch makes of Ladder Side-Tuning on each.

    python -m venv venv && . venv/bin/activate
    pip install torch==2.15.* transformers==5.23.* onnx==1.23.* onnxscript onnxruntime==1.32.* onnxsim==0.8.* \\
        onnxconverter-common==1.16.* safetensors
    python -m venv optimum && optimum/bin/pip install torch==2.15.* optimum-onnx==0.1.* "transformers<4.58" accelerate
    OPTIMUM_PYTHON=optimum/bin/python python make.py

    python make.py                       everything
    python make.py --zoo DIR             the same; the models stay in DIR, a folder each; DIR/INDEX.txt tells their nodes
    python make.py --zoo DIR ts_bf16     this model is made again in DIR, and then the fixtures of all that is there
    python make.py --zoo DIR --reuse     the fixtures alone
    python make.py --backbone sdpa       the models and fixtures of one backbone

What is written:

    models/<name>.zip                    the model's files, without the weights
    weights/<backbone>.zip               the weights of a backbone's models, each once (archives.py)
    expected/<backbone>.safetensors      batch, side network (side.*), logits, loss, gradients (grad.*)
    expected/<name>.safetensors          a quantised model's own logits, loss, gradients; the rest is the backbone's
    expected/<backbone>_folded_scale...  the same where a tool folded the scale of a tied head into the final norm
    matrix.json                          of each model: name, arithmetic, backbone, expectation, what its refusal must name

Models that users reported are written by reported.py.

Everything is seeded. Exporters and tools decide on some names and orders anew in each run; the numbers stay.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import onnx
import torch
import transformers

import archives
import catalogue
import expectations
import quantised
import reported
import runs
from backbones import BACKBONES, build, cases

HERE = Path(__file__).resolve().parent


def quiet():
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------------- models


def write_model(name, workshop):
    """Writes one model; the trace of what failed, or None."""
    quiet()
    model = next(model for model in catalogue.all_models() if model.name == name)
    folder = workshop.root / name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    (workshop.scratch / name).mkdir(exist_ok=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model.write(workshop, folder)
    except Exception:
        return traceback.format_exc()
    return None


def write_models(models, workshop):
    """Writes the models, each after the one that it is made from; the traces of those that failed."""
    failures, rest = {}, models
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        while rest:
            waiting = {model.name for model in rest}
            ready = [model for model in rest if model.after not in waiting]
            rest = [model for model in rest if model.after in waiting]
            started = [(model.name, pool.apply_async(write_model, (model.name, workshop))) for model in ready]
            failures |= {name: failure for name, run in started if (failure := run.get())}
    return failures


def all_nodes(graph):
    """The nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def describe(path):
    proto = onnx.load(path, load_external_data=False)
    nodes = list(all_nodes(proto.graph))
    counts = collections.Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in nodes)
    opsets = " ".join(f"{entry.domain or 'ai.onnx'}={entry.version}" for entry in proto.opset_import)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in weights]
    outputs = [value.name for value in proto.graph.output]
    if len(outputs) > 5:
        outputs[3:] = [f"... ({len(outputs)})"]
    return (f"  {path.name}: {len(nodes)} nodes, {path.stat().st_size // 1024} KB, IR {proto.ir_version}, {opsets}\n"
            f"    {', '.join(inputs)} -> {', '.join(outputs)}\n"
            f"    {' '.join(f'{name}={count}' for name, count in sorted(counts.items()))}\n")


def write_index(zoo):
    with open(zoo / "INDEX.txt", "w") as index:
        for model in catalogue.all_models():
            source = f", made from {model.after}" if model.after else ""
            refusal = f", to be refused: {model.refused}" if model.refused else ""
            index.write(f"{model.name}  [{model.arithmetic}, {model.backbone}{source}{refusal}]\n")
            paths = sorted((zoo / model.name).glob("*.onnx"))
            index.writelines(map(describe, paths) if paths else ["  could not be made\n"])


# ---------------------------------------------------------------------------------------------------- expectations


class Reference:
    """The PyTorch model of a backbone on its batch."""

    def __init__(self, name):
        self.backbone = BACKBONES[name]
        self.batch = cases.draw_batch(self.backbone)
        self.taps, self.logits = expectations.taps_of(self.backbone, build(self.backbone), self.batch)

    def distance(self, logits):
        return float((logits - self.logits).abs().max() / self.logits.abs().max())


def write_backbone(name):
    expectations.write(expectations.expected(BACKBONES[name]), HERE / "expected" / f"{name}.safetensors")


def write_quantised(model, reference, zoo, names):
    """The expectation of a quantised model, from its own hidden states."""
    folder, source = zoo / model.name, zoo / model.float_source
    if model.float_source not in names:
        names[model.float_source] = quantised.tap_names(source, reference.batch, reference.taps)
    _, taps = runs.run(folder, reference.batch, names[model.float_source])
    head = quantised.head_weight(source, folder)
    found = expectations.expected(reference.backbone, taps, head)
    expectations.write(expectations.results(found), HERE / "expected" / f"{model.name}.safetensors")


def remove_fixtures():
    for folder in ("models", "expected", "weights"):
        (HERE / folder).mkdir(exist_ok=True)
        for stale in (HERE / folder).iterdir():
            if not stale.name.startswith(reported.PREFIX):
                stale.unlink()


def write_fixtures(models, zoo):
    references, names, pools = {}, {}, {}
    for model in models:
        pool = pools.setdefault(model.backbone, archives.Pool(model.backbone or "refused"))
        archives.write_model(zoo / model.name, pool, HERE / "models" / f"{model.name}.zip")
        if model.refused:
            continue
        if model.backbone not in references:
            references[model.backbone] = Reference(model.backbone)
            write_backbone(model.backbone)
        reference = references[model.backbone]
        if model.arithmetic == "quantised":
            write_quantised(model, reference, zoo, names)
        if model.folded_scale:
            found = expectations.expected(reference.backbone, scale=1.0)
            expectations.write(expectations.results(found), HERE / "expected" / f"{model.expected}.safetensors")
        if model.arithmetic == "bf16":
            agreement = "ONNX Runtime has no bf16 kernels on the CPU"
        else:
            agreement = f"{reference.distance(runs.run(zoo / model.name, reference.batch)):.1e}"
        print(f"{model.name:40} {model.arithmetic:9} {agreement}", flush=True)
    for pool in pools.values():
        pool.write(HERE / "weights")


def write_list():
    entries = [
        {"name": model.name, "arithmetic": model.arithmetic, "backbone": model.backbone, "expected": model.expected,
         "refused": model.refused}
        for model in catalogue.all_models()
    ] + reported.entries()
    lines = ",\n".join(json.dumps({key: value for key, value in entry.items() if value}) for entry in entries)
    (HERE / "matrix.json").write_text(f"[\n{lines}\n]\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--models-only", action="store_true")
    parser.add_argument("--backbone")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    quiet()
    everything = catalogue.all_models()
    of_backbone = [model for model in everything if arguments.backbone in (None, model.backbone)]
    models = [model for model in of_backbone if not arguments.names or model.name in arguments.names]
    with tempfile.TemporaryDirectory() as scratch:
        zoo = arguments.zoo or Path(scratch) / "zoo"
        if not arguments.reuse:
            optimum = os.environ.get("OPTIMUM_PYTHON", sys.executable)
            failures = write_models(models, catalogue.Workshop(zoo, Path(scratch), optimum))
            write_index(zoo)
            if failures:
                sys.exit("\n".join(f"{name}\n{failure}" for name, failure in failures.items()))
        if not arguments.models_only:
            if not arguments.backbone:
                remove_fixtures()
            write_fixtures(of_backbone, zoo)
            write_list()


if __name__ == "__main__":
    main()
