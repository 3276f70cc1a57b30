"""The accuracy that a low-precision backbone costs: python benches/accuracy.py

    cargo build --release
    python benches/accuracy.py --backbones fp32 int8 --tasks class --seeds 0

Each run is `lstc rewrite --backbone`, `lstc train` and `lstc eval` with the quickstart's settings. What is evaluated is
the side network after the last epoch, on held-out definitions, by the likelihood of the labels. Three tasks are made
of the glosses: the class of what is defined, one of eight; whether it lives; which of five kinds it is. The goal: a
backbone type loses at most 0.5 points of accuracy against fp32, the mean over seeds, for each model and task.

With --cache the seeds of a model, task and type share the backbone's taps, which the first of them computes: less than half
of the time. In fp32 that changes nothing. An int8 backbone quantises over whole batches, and then sees each example in the
batch of one epoch alone.

A measured run is kept in the scratch folder with its results.json and not repeated: remove the folder when lstc
has changed. The exit code is 0 when the goal holds, 1 when it does not, 2 when something could not be measured.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from lstc import Lstc, note
from runs import measured
from table import markdown
from watch import Unmeasured

ROOT = Path(__file__).resolve().parent.parent
MODELS = [ROOT / "models/t5-nano/model.onnx", ROOT.parent / "shared/t5-mini/model.torchscript.onnx"]
SETTINGS = ["--batch-size", "64", "--lr", "3e-3"]
REWRITE = ["-r", "4", "--init", "magnitude-consistent"]
BACKBONES = ("fp32", "int8", "int4")
MOST = 0.5  # points that a type may lose
# A task is what becomes of each label of the glosses.
CLASSES = ("animal", "artifact", "body", "communication", "food", "location", "person", "plant")
TASKS = {
    "class": {label: label for label in CLASSES},
    "living": {label: "living" if label in {"animal", "person", "plant"} else "other" for label in CLASSES},
    "kind": dict(zip(CLASSES, ("nature", "thing", "people", "idea", "thing", "place", "people", "nature"))),
}


def write_task(task, folder):
    """The files to train on and to evaluate on."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (ROOT / f"examples/glosses.{split}.jsonl").read_text().splitlines()]
        file = folder / f"{task}.{split}.jsonl"
        rows = [row | {"label": TASKS[task][row["label"]]} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(file)
    return files


def kept(model, backbone, task, args):
    """The folder of the taps that the seeds share."""
    return args.scratch / f"taps-{model.parent.name}-{backbone}-{task}" if args.cache else None


def measure(build, model, backbone, task, seed, args):
    """Accuracy and seconds of one run, from its folder where it was measured before."""
    folder = args.scratch / f"{model.parent.name}-{backbone}-{task}-{seed}"
    precision = []
    if backbone != "fp32":
        build.offers("rewrite", "--backbone")
        kind, _, most = backbone.partition(":")
        precision = ["--backbone", kind, *(["--max-tap-error", most] if most else [])]
    training, test = write_task(task, args.scratch)
    cached = ["--cache", taps] if (taps := kept(model, backbone, task, args)) else []
    options = ["--epochs", args.epochs, "--seed", seed, *SETTINGS, *cached]
    return measured(build, folder, [model, "--seed", seed, *REWRITE, *precision], [training, *options], test)


def measure_all(build, args, problems):
    """Accuracies in percent of each (model, task, backbone), a seed each."""
    wanted = [
        (model, task, backbone, seed)
        for model in args.models for task in args.tasks for backbone in args.backbones for seed in args.seeds
    ]
    found, took = {}, {}
    for number, (model, task, backbone, seed) in enumerate(wanted):
        where = f"{model.parent.name}, {task}, {backbone}, seed {seed}"
        try:
            result, fresh = measure(build, model, backbone, task, seed, args)
        except Unmeasured as problem:
            problems[where] = str(problem)
            continue
        found.setdefault((model, task, backbone), {})[seed] = 100 * result["accuracy"]
        took.setdefault(model, []).append(result["seconds"])
        if args.cache and seed == args.seeds[-1]:
            shutil.rmtree(kept(model, backbone, task, args), ignore_errors=True)
        left = sum(statistics.mean(took[later]) for later, *_ in wanted[number + 1 :] if later in took)
        others = sum(later not in took for later, *_ in wanted[number + 1 :])
        note(
            f"{where}: {100 * result['accuracy']:.1f} %{'' if fresh else ', measured before'}; about {left / 60:.0f} minutes left"
            + (f" and {others} runs of other models" if others else "")
        )
    return found


def table(found):
    """A line for each model, task and backbone; whether all of them keep to the goal."""
    cells, all_hold = [], True
    for (model, task, backbone), accuracies in found.items():
        base = found.get((model, task, "fp32"), {})
        lost = [base[seed] - accuracies[seed] for seed in accuracies if seed in base]
        mean, holds = "", ""
        if backbone != "fp32" and lost:
            error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
            mean, kept = f"{statistics.mean(lost):+.2f} ± {error:.2f}", statistics.mean(lost) <= MOST
            all_hold &= kept
            holds = "holds" if kept else "does not hold"
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies.values())
        cells.append([model.parent.name, task, backbone, each, f"{statistics.mean(accuracies.values()):.2f} %", mean, holds])
    header = ["model", "task", "backbone", "by seed", "mean", "points lost, standard error", f"at most {MOST}"]
    return markdown(header, cells), all_hold


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    there = [model for model in MODELS if model.is_file()]
    parser.add_argument("--models", nargs="+", type=Path, default=there, help="default: T5-nano, and T5-mini where it is there")
    parser.add_argument(
        "--backbones", nargs="+", default=list(BACKBONES),
        help="with the largest error at a tap after a colon, as in int4:0.03; default: fp32 int8 int4",
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench/accuracy", help="default: %(default)s")
    parser.add_argument("--cache", action="store_true", help="train on kept taps, which the seeds share")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--epochs", type=int, default=8, help="default: 8, as in the quickstart")
    args = parser.parse_args()
    build, problems = Lstc(args.lstc, args.scratch, args.threads), {}
    try:
        build.check()
        found = measure_all(build, args, problems)
    except Unmeasured as problem:
        problems["lstc"], found = str(problem), {}
    lines, holds = table(found)
    print(lines)
    for where, problem in problems.items():
        note(f"error: {where}: {problem}")
    return 2 if problems else 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
