"""How soon and how well a side network learns, by its initialisation: python benches/starts.py

    cargo build --release
    python benches/public_tasks.py target/bench/tasks
    python benches/starts.py                                      T5-nano, the glosses
    python benches/starts.py --tasks glosses tweets bbc           with two public tasks
    python benches/starts.py --inits magnitude-consistent --projections aligned --backbones fp32 int8 int4

Each run is `lstc rewrite`, `lstc train` and `lstc eval`, as a user would type them: batches of 64, learning rate 3e-3, 8
epochs. The seed is that of the initial values and of the order of the examples. What is evaluated is the side network
after the last epoch, by the likelihood of the labels, on the first thousand held-out rows, which are not used otherwise.

"Learns from" is the first step at which the mean of the last 50 losses is below 0.965 of the loss of a model that knows
how often each label occurs and ignores its input: the entropy of the labels, divided by the tokens of a target. "never"
counts as the last step in the mean.

With fp32 all runs of a model and task share the backbone's taps, which the first computes; the others train without a cache,
since an int8 backbone's taps depend on what else is in a batch. A measured run is kept in the scratch folder and not
repeated. The exit code is 2 when something could not be measured.
"""

import argparse
import collections
import itertools
import json
import math
import statistics
import sys
from pathlib import Path

from lstc import Lstc, note
from runs import measured
from table import markdown
from tasks import ROOT, files_of, held_out
from tokenizers import Tokenizer
from watch import Unmeasured

INITS = ("magnitude-consistent", "magnitude", "random")
PROJECTIONS = ("aligned", "uniform", "normal:0.01")
BACKBONES = ("fp32", "int8", "int4")
EPOCHS, BATCH = 8, 64
WINDOW, BELOW = 50, 0.965


def written(task, args):
    """The file to train on, and one of the rows to evaluate on."""
    training, test = files_of(task, args.data)
    few = args.scratch / f"{task}.test.jsonl"
    few.parent.mkdir(parents=True, exist_ok=True)
    few.write_text("".join(held_out(test)))
    return training, few


def constant_loss(training, model):
    """The loss of the best model that ignores its input: the entropy of the labels over the tokens of a target."""
    tokenizer = Tokenizer.from_file(str(model.with_name("tokenizer.json")))
    labels = collections.Counter(json.loads(line)["label"] for line in training.read_text().splitlines())
    total = sum(labels.values())
    entropy = -sum(count / total * math.log(count / total) for count in labels.values())
    tokens = sum(count / total * len(tokenizer.encode(label).ids) for label, count in labels.items())
    return entropy / tokens


def learns_from(losses, constant):
    """The first step at which the loss is below the constant model's, or None."""
    for step in range(WINDOW, len(losses) + 1):
        if statistics.fmean(losses[step - WINDOW : step]) < BELOW * constant:
            return step
    return None


def measure(build, key, args):
    model, task, backbone, init, projections, reduction, seed = key
    training, test = written(task, args)
    name = "-".join(map(str, (model.parent.name, task, backbone, init, projections, reduction, seed)))
    rewrite = [model, "-r", reduction, "--init", init, "--init-projections", projections, "--seed", seed]
    train = [training, "--epochs", EPOCHS, "--batch-size", BATCH, "--lr", "3e-3", "--seed", seed]
    if backbone == "fp32":
        train += ["--cache", args.scratch / f"taps-{model.parent.name}-{task}"]
    else:
        rewrite += ["--backbone", backbone]
    found, fresh = measured(build, args.scratch / name.replace(":", "").replace(",", "+"), rewrite, train, test)
    found["learns"] = learns_from(found["losses"], constant_loss(training, model))
    return found, fresh


def measure_all(build, args, problems):
    grid = list(itertools.product(
        args.models, args.tasks, args.backbones, args.inits, args.projections, args.reductions, args.seeds,
    ))
    found = collections.defaultdict(list)
    for number, key in enumerate(grid, 1):
        where = ", ".join([key[0].parent.name, *map(str, key[1:6]), f"seed {key[6]}"])
        try:
            result, fresh = measure(build, key, args)
        except Unmeasured as problem:
            problems[where] = str(problem)
            continue
        found[key[:-1]].append(result)
        if fresh:
            learns = result["learns"] or "never"
            note(f"{number}/{len(grid)} {where}: {100 * result['accuracy']:.1f} %, learns from {learns}, {result['seconds']:.0f} s")
    return found


def table(found, args):
    """A line for each model, task, backbone and start; a pair of columns for each reduction."""
    header = ["model", "task", "backbone", "blocks", "projections"]
    header += [cell for r in args.reductions for cell in (f"r = {r}", "learns from")]
    cells = []
    for where in dict.fromkeys(key[:-1] for key in found):
        line = [where[0].parent.name, *where[1:]]
        for reduction in args.reductions:
            runs = found.get((*where, reduction), [])
            each = [100 * run["accuracy"] for run in runs]
            steps = [run["learns"] for run in runs]
            line.append(f"**{statistics.mean(each):.1f}** ({', '.join(f'{a:.1f}' for a in each)})" if each else "")
            line.append(", ".join(str(step or "never") for step in steps))
        cells.append(line)
    return markdown(header, cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", type=Path, default=[ROOT / "models/t5-nano/model.onnx"], help="default: T5-nano")
    parser.add_argument("--tasks", nargs="+", default=["glosses"], help="glosses, or what public_tasks.py makes; default: glosses")
    parser.add_argument("--data", type=Path, default=ROOT / "target/bench/tasks", help="where those are; default: %(default)s")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["fp32"], help="default: fp32")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS), help="default: all")
    parser.add_argument("--projections", nargs="+", default=list(PROJECTIONS), help=f"default: {' '.join(PROJECTIONS)}")
    parser.add_argument("--reductions", nargs="+", type=int, default=[8, 4, 2], help="default: 8 4 2")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench/starts", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    build, problems = Lstc(args.lstc, args.scratch, args.threads), {}
    try:
        build.check()
        build.offers("rewrite", "--init-projections")
        found = measure_all(build, args, problems)
    except Unmeasured as problem:
        problems["lstc"], found = str(problem), {}
    print(table(found, args))
    for where, problem in problems.items():
        note(f"error: {where}: {problem}")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
