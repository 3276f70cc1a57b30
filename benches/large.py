#!/usr/bin/env python3
"""What it takes lstc to rewrite and to inspect a T5-3B: seconds, memory, and what becomes of its 11.4 GB of weights.

Needs nothing but Python's standard library and a built lstc. The graph is PyTorch's export at those sizes; the file of
its weights is sparse, so that it takes no space on the disk, and reading it does not measure the disk.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from watch import Unmeasured, watch

ROOT = Path(__file__).resolve().parent.parent
GRAPH = ROOT / "tests/cases/shapes/t5_3b.onnx"
WEIGHTS = 11_406_393_344  # bytes that the graph refers to

# What is run, and the seconds and MB that it may take at most; None is not a goal.
ROWS = {
    "rewrite, `random`": (["rewrite", "--init", "random"], 10, 300),
    "rewrite, `magnitude`": (["rewrite", "--init", "magnitude"], None, 600),
    "rewrite, `magnitude-consistent`": (["rewrite", "--init", "magnitude-consistent"], None, 600),
    "inspect": (["inspect"], 1, None),
}


def prepare(folder):
    """The model: the graph, and a sparse file of weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = folder / "t5-3b.onnx"
    shutil.copyfile(GRAPH, model)
    with (folder / "weights.bin").open("wb") as weights:
        weights.truncate(WEIGHTS)
    return model


def measure(lstc, model, command, rounds):
    """The fewest seconds and the highest peak of some runs, and how the last one says that the weights came to be."""
    name, *flags = command
    output = ["-o", model.with_name("tuned"), "--force", "--link"] if name == "rewrite" else []
    seconds, peak, weights = [], 0, "not read"
    for _ in range(rounds):
        start = time.monotonic()
        watched = watch([lstc, name, model, "--format", "json", *flags, *output])
        seconds.append(time.monotonic() - start)
        peak = max(peak, watched.peak)
    if name == "rewrite":
        try:
            files = json.loads(watched.stdout)["backbone"]
            weights = ", ".join(f"{file['bytes'] / 1e9:.1f} GB {file['how']}" for file in files)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise Unmeasured("the report of `lstc rewrite` has no `backbone`") from error
    return min(seconds), peak / 1e6, weights


def cell(value, goal, form):
    """A figure beside its goal, and whether it holds."""
    if goal is None:
        return form.format(value), True
    return f"{form.format(value)} (at most {goal})", value <= goal


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="the binary [%(default)s]")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench/large", help="folder [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row; the fastest counts [%(default)s]")
    args = parser.parse_args()
    if not args.lstc.is_file():
        raise Unmeasured(f"there is no `{args.lstc}`: run `cargo build --release`, or give --lstc")
    model = prepare(args.scratch)
    print("| T5-3B | s | peak, MB | weights |")
    print("| --- | --- | --- | --- |")
    all_hold = True
    for row, (command, most_seconds, most_memory) in ROWS.items():
        seconds, peak, weights = measure(args.lstc, model, command, args.rounds)
        (seconds, quick), (peak, small) = cell(seconds, most_seconds, "{:.2f}"), cell(peak, most_memory, "{:.0f}")
        all_hold &= quick and small
        print(f"| {row} | {seconds} | {peak} | {weights} |", flush=True)
    shutil.rmtree(args.scratch)
    return 0 if all_hold else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unmeasured as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
