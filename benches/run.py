"""Measures lstc's training step and its peers', and compares its predicted memory with what it takes.

    cargo build --release
    pip install -r benches/requirements.txt
    python benches/run.py                         everything
    python benches/run.py --only peers ort lstc   without the section on predictions
    python benches/run.py --rows lst lstc         these rows alone

Every measurement is a process of its own, watched from outside. Peers and lstc alternate over `--rounds`, so that
other load on the machine affects all of them. Exports and rewrites lie in target/bench and exports are reused; results.json
there holds every step. The exit code is 0 when every goal that was measured holds, 1 when one does not, 2 when
something could not be measured.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import bare
import lstc
import peers
import rows
from lstc import Lstc, note
from shapes import SHAPES
from table import markdown
from watch import Unmeasured, watch

ROOT = Path(__file__).resolve().parent.parent
PREDICTION = 0.20  # how far a prediction may be from the measured peak
IDLE = 0.5  # the load above which times are not to be trusted


@dataclasses.dataclass(frozen=True)
class Goal:
    """`key` of row `ours` is at most `factor` of the least of the rows `of`, or `limit`; `plus` is a row to be added."""

    what: str
    ours: str
    key: str
    factor: float = 1.0
    of: tuple = ()
    limit: float = 0.0
    plus: str = ""

    def judge(self, summary):
        """Whether it holds, None where a row is missing, and the figures."""
        value = lambda row: summary[row][self.key] if row in summary else None
        ours, floor = value(self.ours), value(self.plus) if self.plus else 0.0
        found = {row: value(row) for row in self.of if row in summary}
        missing = [self.ours] * (ours is None) + [self.plus] * (floor is None) + list(self.of) * (not found and not self.limit)
        if missing:
            return None, "not measured: " + ", ".join(missing)
        least = min(found, key=found.get, default=None)
        bound = self.limit or self.factor * found[least] + floor
        unit = seconds if self.key == "seconds" else gigabytes
        figures = f"{unit(ours)}, at most {unit(bound)}"
        if least:
            figures += f": {(ours - floor) / found[least]:.2f} of {unit(found[least])} of `{least}`"
        if self.plus:
            figures += f", beside a floor of {unit(floor)}"
        return ours <= bound, figures


GOALS = [
    Goal("a step takes no longer than PyTorch's LST", "lstc", "seconds", 1.0, ("lst",)),
    Goal("the peak is at most 40 % of full fine-tuning's", "lstc", "peak", 0.40, ("full",)),
    Goal("an int8 step takes at most 0.40 of PyTorch's LST", "lstc-int8", "seconds", 0.40, ("lst",)),
    Goal("an int8 step takes less than half of PyTorch's forward pass", "lstc-int8", "seconds", 0.50, ("forward",)),
    Goal("an int8 step takes at most 1.6 of ONNX Runtime's bare int8 forward pass", "lstc-int8", "seconds", 1.6, rows.INT8),
    Goal("a cached step takes at most 0.2 of PyTorch's forward pass", "lstc-cached", "seconds", 0.2, ("forward",)),
    Goal("the int8 peak is at most 892 MB, the weights of the source", "lstc-int8", "peak", limit=892e6),
    Goal("the int8 peak is at most 20 % of full fine-tuning's", "lstc-int8", "peak", 0.20, ("full",)),
    Goal(
        "a step takes at most 1.15 of ONNX Runtime's bare forward pass, and the side floor, a cached step",
        "lstc", "seconds", 1.15, ("ort",), plus="lstc-cached",
    ),
    Goal("a cached step takes at most 0.6 of the generic decomposition's", "lstc-cached", "seconds", 0.6, ("generic",)),
]


def measure_peer(row, shape, steps, threads):
    watched = watch(peers.command(row, shape, steps, threads), peers.environment(threads))
    found = json.loads(watched.stdout.splitlines()[-1])
    return found | {"anonymous": watched.anonymous, "file": watched.file}


def measure_bare(row, build, shape, steps, threads):
    model = rows.ROWS[row].model(build, shape)
    watched = watch(bare.command(model, shape, steps, threads), peers.environment(threads))
    found = json.loads(watched.stdout.splitlines()[-1])
    return found | {
        "row": row, "label": rows.ROWS[row].label, "shape": shape, "peak_memory": watched.peak,
        "anonymous": watched.anonymous, "file": watched.file,
    }


def turns(args, wanted, build):
    """The command that measures each wanted row."""
    shape, threads, found = args.shape, args.threads, {}
    if "peers" in wanted:
        found |= {row: lambda row=row: measure_peer(row, shape, args.steps, threads) for row in peers.ROWS}
    if "ort" in wanted:
        found |= {row: lambda row=row: measure_bare(row, build, shape, args.bare_steps, threads) for row in rows.ROWS}
    if "lstc" in wanted:
        found |= {row: lambda row=row: build.train(shape, args.lstc_steps, row) for row in lstc.ROWS}
    return {row: turn for row, turn in found.items() if row in args.rows}


def compare(args, turns, problems):
    """All rows by turns. One that cannot be measured goes to `problems` under its name and is not tried again."""
    runs, turns = [], dict(turns)
    for number in range(1, args.rounds + 1):
        for row, turn in list(turns.items()):
            note(f"round {number} of {args.rounds}: {row}")
            try:
                runs.append(turn() | {"round": number})
            except Unmeasured as problem:
                problems[row] = str(problem)
                del turns[row]
    return runs


def predict(args, build, runs, problems):
    """Predicted and measured peaks. A shape that `runs` has is not run again; what is run joins them."""
    found = []
    for name in SHAPES:
        note(f"prediction for {name}")
        try:
            if not any(run["row"] == "lstc" and run["shape"] == name for run in runs):
                runs.append(build.train(name, args.lstc_steps))
            predicted = build.predicted(name)
        except Unmeasured as problem:
            problems[f"prediction for {name}"] = str(problem)
            continue
        measured = max(run["peak_memory"] for run in runs if run["row"] == "lstc" and run["shape"] == name)
        holds = abs(predicted / measured - 1) <= PREDICTION
        found.append({"shape": name, "predicted": predicted, "measured": measured, "holds": holds})
    return found


def summarise(runs):
    """One row for all rounds: the median and the best of all steps, the largest peak."""
    found = {}
    for run in runs:
        found.setdefault(run["row"], []).append(run)
    return {
        row: {
            "label": of[0]["label"], "trainable": of[0]["trainable"],
            "seconds": statistics.median(s for run in of for s in run["seconds"]),
            "best": min(s for run in of for s in run["seconds"]),
            "peak": max(run["peak_memory"] for run in of),
            "anonymous": max(run["anonymous"] for run in of),
        }
        for row, of in found.items()
    }


def seconds(value):
    return f"{value:.3f} s"


def gigabytes(size):
    return f"{size / 1e9:.3f} GB"


def comparison_table(names, summary, problems):
    """Times and peaks, and their ratios to PyTorch's LST and forward pass and to full fine-tuning."""

    def ratio(row, key, of):
        return f"{row[key] / summary[of][key]:.2f}" if of in summary else ""

    def cells(name):
        if name not in summary:
            return [f"`{name}`", f"not measured: {problems[name].splitlines()[0]}", *[""] * 8]
        row = summary[name]
        return [
            f"`{name}`", row["label"], f"{row['trainable']:,}", f"{row['seconds']:.3f}", f"{row['best']:.3f}",
            ratio(row, "seconds", "lst"), ratio(row, "seconds", "forward"), f"{row['peak'] / 1e9:.2f}",
            ratio(row, "peak", "full"), f"{row['anonymous'] / 1e9:.2f}",
        ]

    header = [
        "row", "", "trainable", "s/step, median", "best", "of PyTorch's LST", "of its forward pass", "peak, GB",
        "of full fine-tuning", "anonymous, GB",
    ]
    return markdown(header, [cells(name) for name in names])


def prediction_table(predictions):
    header = ["shape", "", "predicted, MB", "measured, MB", "ratio", f"within {PREDICTION:.0%}"]
    megabytes = lambda size: f"{size / 1e6:.0f}"
    cells = [
        [
            row["shape"], str(SHAPES[row["shape"]]), megabytes(row["predicted"]), megabytes(row["measured"]),
            f"{row['predicted'] / row['measured']:.2f}", "yes" if row["holds"] else "no",
        ]
        for row in predictions
    ]
    return markdown(header, cells)


def machine():
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    return {"processor": model, "cores": os.cpu_count(), "load": os.getloadavg()}


def version(binary):
    try:
        return subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts, all_rows = ["peers", "ort", "lstc", "predict"], [*peers.ROWS, *rows.ROWS, *lstc.ROWS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure; default: all")
    parser.add_argument("--rows", nargs="+", choices=all_rows, default=all_rows, help="of these rows alone; default: all")
    parser.add_argument("--shape", choices=SHAPES, default="t5-base", help="that rows are compared at; default: %(default)s")
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of a PyTorch peer in a round; default: 7")
    parser.add_argument("--bare-steps", type=int, default=10, help="of a model on ONNX Runtime; default: 10")
    parser.add_argument("--lstc-steps", type=int, default=10, help="of lstc; default: 10")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    return parser.parse_args()


def print_comparison(args, names, summary, problems, found, processor):
    print(f"{args.shape}: {SHAPES[args.shape]}; {args.threads} threads, {processor}\n")
    print(comparison_table(names, summary, problems) + "\n")
    verdicts = {True: "holds", False: "does not hold", None: "open"}
    for what, holds, figures in found:
        print(f"* {verdicts[holds]}: {what} ({figures})")


def main():
    args = arguments()
    args.scratch.mkdir(parents=True, exist_ok=True)
    build, problems, before = Lstc(args.lstc, args.scratch, args.threads), {}, machine()
    summary, found, predictions = {}, [], []
    wanted = set(args.only)
    try:
        build.check()
    except Unmeasured as problem:
        if wanted != {"peers"}:
            problems["lstc"] = str(problem)
        wanted &= {"peers"}
    measured = turns(args, wanted, build)
    runs = compare(args, measured, problems)
    if measured:
        summary = summarise(runs)
        found = [(goal.what, *goal.judge(summary)) for goal in GOALS]
        print_comparison(args, measured, summary, problems, found, before["processor"])
    if "predict" in wanted:
        predictions = predict(args, build, runs, problems)
        if predictions:
            print("\nPredicted memory\n\n" + prediction_table(predictions))
    if before["load"][0] > IDLE:
        print(f"\nThe machine was not idle: its load was {before['load'][0]:.1f} at the start.")
    for where, problem in problems.items():
        note(f"error: {where}: {problem}")

    results = {
        "machine": before, "lstc": version(args.lstc), "runs": runs, "summary": summary, "predictions": predictions,
        "goals": [{"goal": what, "holds": holds, "figures": figures} for what, holds, figures in found],
        "problems": problems,
    }
    (args.scratch / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if problems:
        return 2
    missed = [holds for _, holds, _ in found] + [row["holds"] for row in predictions]
    return 1 if False in missed else 0


if __name__ == "__main__":
    sys.exit(main())
