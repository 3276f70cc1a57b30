"""Accuracy of lstc on the glosses, by initialisation and seed: python benches/seeds.py

    cargo build --release
    python benches/seeds.py --seeds 0 1 2 --init magnitude magnitude-consistent random

Each run is `lstc rewrite`, `lstc train` and `lstc eval`, as a user would type them, with the quickstart's settings. The
seed is that of the initial values and of the order of the examples. What is evaluated is the side network after the last
epoch: the held-out file plays no part before.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["--epochs", "8", "--batch-size", "64", "--lr", "3e-3"]


def lstc(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def accuracy(binary, scratch, init, seed, threads):
    folder = scratch / f"{init}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    model, tuned = ROOT / "models/t5-nano/model.onnx", folder / "tuned"
    common = ["--format", "json"]
    lstc(binary, "rewrite", model, "-o", tuned, "-r", 4, "--init", init, "--seed", seed, *common)
    data = ROOT / "examples/glosses.train.jsonl"
    run = lstc(binary, "train", tuned, "--train", data, "--seed", seed, "--threads", threads, *SETTINGS, *common)
    metrics = lstc(binary, "eval", tuned, "--data", ROOT / "examples/glosses.test.jsonl", *common)
    return metrics, run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench/seeds")
    parser.add_argument("--init", nargs="+", default=["magnitude", "magnitude-consistent", "random"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    print("| initial values | by seed | mean | spread | generated, mean | seconds of training |")
    print("| --- | --- | --- | --- | --- | --- |")
    for init in args.init:
        runs = [accuracy(args.lstc, args.scratch, init, seed, args.threads) for seed in args.seeds]
        found = [100 * metrics["accuracy"] for metrics, _ in runs]
        said = statistics.mean(100 * metrics["generated"] for metrics, _ in runs)
        seconds = statistics.mean(run["seconds"] for _, run in runs)
        each = ", ".join(f"{a:.1f}" for a in found)
        mean, spread = statistics.mean(found), max(found) - min(found)
        print(f"| {init} | {each} | {mean:.1f} % | {spread:.1f} | {said:.1f} % | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
