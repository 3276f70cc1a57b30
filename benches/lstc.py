"""lstc as a user runs it: export, rewrite, train; and what its metrics log says."""

import dataclasses
import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from shapes import MODELS
from watch import Unmeasured, watch

REDUCTION = 8
WARM_UP = 2  # steps that do not count
CACHED_BATCHES = 2  # of an epoch, where later epochs are what is measured


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to train: the flags of `rewrite`, and whether the taps of the first epoch are kept for the others."""

    label: str
    rewrite: tuple = ()
    cached: bool = False


ROWS = {
    "lstc": Row("`lstc train`"),
    "lstc-int8": Row("`lstc train`, int8 backbone", ("--backbone", "int8")),
    "lstc-int4": Row("`lstc train`, int4 backbone", ("--backbone", "int4")),
    "lstc-cached": Row("`lstc train`, cached taps", cached=True),
    "lstc-int8-cached": Row("`lstc train`, int8 backbone, cached taps", ("--backbone", "int8"), cached=True),
}


def note(text):
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Lstc:
    """One build of lstc, and the folder that its files go to."""

    binary: Path
    scratch: Path
    threads: int
    made: dict = dataclasses.field(default_factory=dict)  # what was rewritten, by shape and flags

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
        """The ONNX model of a shape. It is written again when the shape differs from the one that it was written for."""
        folder = self.scratch / name
        model, made_for = folder / "t5.onnx", folder / "shape.json"
        if not made_for.is_file() or made_for.read_text() != MODELS[name].to_json():
            note(f"exporting {name}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            watch([sys.executable, Path(__file__).with_name("export.py"), name, model])
            made_for.write_text(MODELS[name].to_json())
        return model

    def offers(self, command, flag):
        """Refuses a binary whose command has no such flag."""
        teaches = subprocess.run([self.binary, command, "--help"], capture_output=True, text=True).stdout
        if re.search(rf"(?<![\w-]){flag}(?![\w-])", teaches) is None:
            raise Unmeasured(f"no such flag: lstc {command} {flag}")

    def rewritten(self, name, flags=()):
        """The rewritten directory of a shape; written once by this object."""
        if (name, flags) not in self.made:
            for flag in flags[::2]:
                self.offers("rewrite", flag)
            model = self.exported(name)
            output = model.with_name("-".join(["tuned", *flags[1::2]]))
            watch([self.binary, "rewrite", model, "-r", REDUCTION, "-o", output, "--force", *flags])
            self.made[name, flags] = output
        return self.made[name, flags]

    def predicted(self, name, flags=(), shape=None):
        """The bytes that `lstc inspect` says training will take: of the model, or of what is rewritten with flags."""
        shape = shape or MODELS[name]
        sizes = ["--batch", shape.batch, "--source-length", shape.source, "--target-length", shape.target]
        subject = self.rewritten(name, flags) if flags else self.exported(name)
        report = watch([self.binary, "inspect", subject, "--format", "json", *sizes]).stdout
        try:
            return json.loads(report)["memory"]["lst"]["total"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise Unmeasured("the report of `lstc inspect` has no `memory.lst.total`") from error

    def train(self, name, steps, row="lstc", shape=None):
        """One run of `lstc train`: seconds of each step after the warm-up, peaks as it reports them and as seen from outside.

        `shape` has other lengths and another batch than `name`. Of cached taps, the first epoch does not count.
        """
        way, shape = ROWS[row], shape or MODELS[name]
        if way.cached:
            self.offers("train", "--cache")
        tuned = self.rewritten(name, way.rewrite)
        data, output, cache = (tuned.with_name(part) for part in ("train.jsonl", "trained", "taps"))
        batches, epochs, extra = WARM_UP + steps, 1, []
        if way.cached:
            batches, epochs = CACHED_BATCHES, 1 + math.ceil(batches / CACHED_BATCHES)
            shutil.rmtree(cache, ignore_errors=True)
            extra = ["--cache", cache]
        write_examples(shape, batches, data)
        shutil.rmtree(output, ignore_errors=True)
        options = ["--epochs", epochs, "--batch-size", shape.batch, "--threads", self.threads, "--out", output]
        lengths = ["--max-source-length", shape.source, "--max-target-length", shape.target]
        watched = watch([self.binary, "train", tuned, "--train", data, *options, *lengths, *extra])
        log = read_metrics(output / "metrics.jsonl", epochs * batches)
        counted = [entry for entry in log if not way.cached or entry["epoch"] > 1][WARM_UP:]
        shutil.rmtree(cache, ignore_errors=True)
        seconds = [entry["seconds"] for entry in counted]
        return {
            "row": row, "label": way.label, "shape": name, "threads": self.threads,
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
        missing = {"epoch", "seconds", "peak_memory", "loss"} - entry.keys()
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
