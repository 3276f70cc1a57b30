"""lstc as a user runs it: export, rewrite, train; and what its metrics log says."""

import dataclasses
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from shapes import SHAPES
from watch import Unmeasured, watch

REDUCTION = 8
WARM_UP = 2  # steps that do not count


def tell(text):
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Lstc:
    """One build of lstc, and the folder that its files go to."""

    binary: Path
    scratch: Path
    threads: int

    def check(self):
        """Refuses a binary that is not there or cannot train."""
        if not self.binary.is_file():
            raise Unmeasured(f"there is no `{self.binary}`: run `cargo build --release`, or give --lstc")
        try:
            answer = subprocess.run([self.binary, "train", "--help"], capture_output=True)
        except OSError as error:
            raise Unmeasured(f"cannot run `{self.binary}`: {error.strerror}") from error
        if answer.returncode != 0:
            raise Unmeasured(f"`{self.binary}` has no command `train`")

    def exported(self, name):
        """The ONNX model of a shape. It is written anew when the shape differs from the one that it was written for."""
        folder = self.scratch / name
        model, made_for = folder / "t5.onnx", folder / "shape.json"
        if not made_for.is_file() or made_for.read_text() != SHAPES[name].to_json():
            tell(f"exporting {name}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            watch([sys.executable, Path(__file__).with_name("export.py"), name, model])
            made_for.write_text(SHAPES[name].to_json())
        return model

    def rewritten(self, name):
        model = self.exported(name)
        output = model.with_name("tuned")
        watch([self.binary, "rewrite", model, "-r", REDUCTION, "-o", output, "--force"])
        return output

    def predicted(self, name):
        """The bytes that `lstc inspect` says training will take."""
        shape = SHAPES[name]
        sizes = ["--batch", shape.batch, "--source-length", shape.source, "--target-length", shape.target]
        report = watch([self.binary, "inspect", self.exported(name), "--format", "json", *sizes]).stdout
        try:
            return json.loads(report)["memory"]["lst"]["total"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise Unmeasured("the report of `lstc inspect` has no `memory.lst.total`") from error

    def train(self, name, steps):
        """One run of `lstc train`: seconds of each step behind the warm-up, peaks as it tells and as seen from outside."""
        shape, tuned = SHAPES[name], self.rewritten(name)
        data, output = tuned.with_name("train.jsonl"), tuned.with_name("trained")
        write_examples(shape, WARM_UP + steps, data)
        shutil.rmtree(output, ignore_errors=True)
        options = ["--epochs", 1, "--batch-size", shape.batch, "--threads", self.threads, "--out", output]
        watched = watch([self.binary, "train", tuned, "--train", data, *options])
        log = read_metrics(output / "metrics.jsonl", WARM_UP + steps)
        seconds = [entry["seconds"] for entry in log[WARM_UP:]]
        return {
            "row": "lstc", "label": f"lstc train, r={REDUCTION}", "shape": name, "threads": self.threads,
            "trainable": trainable(tuned), "median": statistics.median(seconds), "seconds": seconds,
            "peak_memory": watched.peak, "anonymous": watched.anonymous, "file": watched.file,
            "peak_in_log": max(entry["peak_memory"] for entry in log), "last_loss": log[-1]["loss"],
        }


def write_examples(shape, batches, file):
    """Tokenised examples of exactly the shape's lengths; no padding, no end of sequence, no sentinels."""
    draw = random.Random(0)

    def tokens(count):
        return [draw.randrange(3, shape.vocabulary - 128) for _ in range(count)]

    with file.open("w") as lines:
        for _ in range(batches * shape.batch):
            lines.write(json.dumps({"input_ids": tokens(shape.source), "labels": tokens(shape.target)}) + "\n")


def read_metrics(file, steps):
    """The metrics log of a run, which must be of this many steps, with finite losses."""
    if not file.is_file():
        raise Unmeasured(f"`lstc train` wrote no `{file}`")
    log = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise Unmeasured(f"`{file}`, line {number}: {error}") from error
        if "step" not in entry:
            continue
        missing = {"seconds", "peak_memory", "loss"} - entry.keys()
        if missing:
            raise Unmeasured(f"`{file}`, line {number}: no {', '.join(sorted(missing))}")
        log.append(entry)
    if len(log) != steps:
        raise Unmeasured(f"`{file}` has {len(log)} steps, not {steps}")
    if not all(isinstance(entry["loss"], (int, float)) and math.isfinite(entry["loss"]) for entry in log):
        raise Unmeasured(f"`{file}` has a loss that is not finite")
    return log


def trainable(tuned):
    """Elements in side.safetensors, by its header."""
    with (tuned / "side.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
