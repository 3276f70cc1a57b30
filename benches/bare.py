"""Runs an ONNX model on ONNX Runtime and nothing else: seconds of each run, with what it reads and writes bound.

    python benches/bare.py model.onnx --shape t5-base            a forward pass, or the step of a side network

A value and its `.next` share their memory, as in a training loop. Prints one JSON object. Needs no PyTorch, so that the
process has no more resident than ONNX Runtime takes.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time

import numpy
import onnxruntime
from shapes import MODELS

WARM_UP = 2
KINDS = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}


class Session:
    """A model on the CPU provider with full optimisation, and its bound values."""

    def __init__(self, file, threads, profile=None, optimised=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if optimised:
            options.optimized_model_filepath = str(optimised)
            # Without this, a large model's weights would be written into the file.
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.bin")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def bind(self, feeds):
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        for value in self.session.get_inputs():
            self.binding.bind_ortvalue_input(value.name, values[value.name])
        for output in self.session.get_outputs():
            name = output.name.removesuffix(".next")
            if name != output.name:
                self.binding.bind_ortvalue_output(output.name, values[name])
            else:
                self.binding.bind_output(output.name)

    def run(self):
        self.session.run_with_iobinding(self.binding)

    def trainable(self):
        """Elements of all values that a run updates, moments aside."""
        outputs = {output.name for output in self.session.get_outputs()}
        updated = [value for value in self.session.get_inputs() if f"{value.name}.next" in outputs]
        return sum(math.prod(value.shape) for value in updated if not value.name.startswith("adam."))

    def timed(self, runs):
        """The seconds of each run, after those that warm up."""
        seconds = []
        for _ in range(WARM_UP + runs):
            start = time.perf_counter()
            self.run()
            seconds.append(time.perf_counter() - start)
        return seconds[WARM_UP:]

    def outputs(self):
        names = [output.name for output in self.session.get_outputs()]
        return {name: value.numpy() for name, value in zip(names, self.binding.get_outputs())}


def draw_feeds(session, shape):
    """Values for whatever a T5's forward pass, lstc's side graph or the generic step of this shape reads.

    Token ids and labels are random, masks let everything through, moments are zero, all else is normal.
    """
    draw = numpy.random.default_rng(0)
    free = {"batch": shape.batch, "source": shape.source, "target": shape.target}

    def value(name, kind, size):
        if name == "step" or "mask" in name:
            return numpy.ones(size, kind)
        if name == "lr":
            return numpy.full(size, 1e-4, kind)
        if name.startswith("adam."):
            return numpy.zeros(size, kind)
        if kind is numpy.int64:
            return draw.integers(3, shape.vocabulary, size)
        scale = 1.0 if len(size) == 3 else 0.02
        return (scale * draw.standard_normal(size)).astype(kind)

    inputs = ((found.name, KINDS[found.type], found.shape) for found in session.session.get_inputs())
    return {
        name: value(name, kind, [free[extent] if isinstance(extent, str) else extent for extent in size])
        for name, kind, size in inputs
    }


def measure(file, shape, steps, threads):
    session = Session(file, threads)
    session.bind(draw_feeds(session, shape))
    seconds = session.timed(steps)
    return {
        "threads": threads, "trainable": session.trainable(), "median": statistics.median(seconds), "seconds": seconds,
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def command(file, shape, steps, threads):
    """The command that measures one model in a process of its own."""
    options = {"--shape": shape, "--steps": steps, "--threads": threads}
    return [sys.executable, __file__, file, *(str(part) for option in options.items() for part in option)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--shape", choices=MODELS, default="t5-base")
    parser.add_argument("--steps", type=int, default=10, help=f"measured runs, after {WARM_UP} that are not")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    print(json.dumps(measure(args.file, MODELS[args.shape], args.steps, args.threads)))


if __name__ == "__main__":
    main()
