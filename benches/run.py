"""Measures lstc's training step beside its peers, and its prediction of memory beside what it takes.

    cargo build --release
    pip install -r benches/requirements.txt
    python benches/run.py                     everything
    python benches/run.py --only peers lstc   without the section on predictions

Every measurement is a process of its own, watched from outside. Peers and lstc alternate over `--rounds`, so that what
else the machine does hits all of them. Exports and rewrites lie in target/bench and exports are reused; results.json
there holds every step. The exit code is 0 when every goal that was measured holds, 1 when one does not, 2 when
something could not be measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import peers
from lstc import Lstc, tell
from shapes import SHAPES
from watch import Unmeasured, watch

ROOT = Path(__file__).resolve().parent.parent
SHAPE = "t5-base"  # of the comparison; predictions are held against all shapes
PREDICTION = 0.20  # how far a prediction may be from the measured peak
IDLE = 0.5  # the load above which times are not to be trusted
PEAK = 0.40  # of full fine-tuning's peak: what lstc may take


def measure_peer(row, steps, threads):
    watched = watch(peers.command(row, SHAPE, steps, threads), peers.environment(threads))
    found = json.loads(watched.stdout.splitlines()[-1])
    return found | {"anonymous": watched.anonymous, "file": watched.file}


def compare(args, wanted, lstc, problems):
    """Peers and lstc by turns. A row that cannot be measured goes to `problems` and is not tried again."""
    turns = {}
    if "peers" in wanted:
        turns |= {row: lambda row=row: measure_peer(row, args.steps, args.threads) for row in peers.ROWS}
    if "lstc" in wanted:
        turns["lstc"] = lambda: lstc.train(SHAPE, args.lstc_steps)
    runs = []
    for number in range(1, args.rounds + 1):
        for row, turn in list(turns.items()):
            tell(f"round {number} of {args.rounds}: {row}")
            try:
                runs.append(turn() | {"round": number})
            except Unmeasured as problem:
                problems.append(f"{row}: {problem}")
                del turns[row]
    return runs


def predict(args, lstc, runs, problems):
    """Predicted and measured peaks. A shape that `runs` has is not run again; what is run joins them."""
    rows = []
    for name in SHAPES:
        tell(f"prediction for {name}")
        try:
            if not any(run["row"] == "lstc" and run["shape"] == name for run in runs):
                runs.append(lstc.train(name, args.lstc_steps))
            predicted = lstc.predicted(name)
        except Unmeasured as problem:
            problems.append(f"prediction for {name}: {problem}")
            continue
        measured = max(run["peak_memory"] for run in runs if run["row"] == "lstc" and run["shape"] == name)
        holds = abs(predicted / measured - 1) <= PREDICTION
        rows.append({"shape": name, "predicted": predicted, "measured": measured, "holds": holds})
    return rows


def summarise(runs):
    """One row for all rounds: the median and the best of all steps, the largest peak."""
    rows = {}
    for run in runs:
        rows.setdefault(run["row"], []).append(run)
    return {
        row: {
            "label": of[0]["label"], "trainable": of[0]["trainable"],
            "seconds": statistics.median(s for run in of for s in run["seconds"]),
            "best": min(s for run in of for s in run["seconds"]),
            "peak": max(run["peak_memory"] for run in of),
            "anonymous": max(run["anonymous"] for run in of),
        }
        for row, of in rows.items()
    }


def goals(summary):
    """The two goals as (what, whether it holds, the figures); None where a row is missing."""
    found = []
    ours, lst, full = (summary.get(row) for row in ("lstc", "lst", "full"))
    what = "a step of lstc takes no longer than PyTorch's LST"
    if ours and lst:
        figures = f"{ours['seconds']:.2f} s, {lst['seconds']:.2f} s"
        found.append((what, ours["seconds"] <= lst["seconds"], figures))
    else:
        found.append((what, None, "not measured"))
    what = f"lstc's peak is at most {PEAK:.0%} of full fine-tuning's"
    if ours and full:
        figures = f"{gigabytes(ours['peak'])} of {gigabytes(full['peak'])} GB, {ours['peak'] / full['peak']:.0%}"
        found.append((what, ours["peak"] <= PEAK * full["peak"], figures))
    else:
        found.append((what, None, "not measured"))
    return found


def gigabytes(size):
    return f"{size / 1e9:.2f}"


def markdown(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def comparison_table(summary):
    """Times and peaks, and their ratios to PyTorch's LST and to full fine-tuning."""

    def ratio(row, key, of):
        return f"{row[key] / summary[of][key]:.2f}" if of in summary else ""

    header = ["", "trainable", "s/step, median", "best", "of PyTorch's LST", "peak, GB", "of full fine-tuning", "anonymous, GB"]
    rows = [
        [
            row["label"], f"{row['trainable']:,}", f"{row['seconds']:.2f}", f"{row['best']:.2f}",
            ratio(row, "seconds", "lst"), gigabytes(row["peak"]), ratio(row, "peak", "full"), gigabytes(row["anonymous"]),
        ]
        for row in summary.values()
    ]
    return markdown(header, rows)


def prediction_table(rows):
    header = ["shape", "", "predicted, MB", "measured, MB", "ratio", f"within {PREDICTION:.0%}"]
    megabytes = lambda size: f"{size / 1e6:.0f}"
    cells = [
        [
            row["shape"], str(SHAPES[row["shape"]]), megabytes(row["predicted"]), megabytes(row["measured"]),
            f"{row['predicted'] / row['measured']:.2f}", "yes" if row["holds"] else "no",
        ]
        for row in rows
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
    parts = ["peers", "lstc", "predict"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure; default: all")
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of a peer in a round; default: 7")
    parser.add_argument("--lstc-steps", type=int, default=10, help="measured steps of lstc in a round; default: 10")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    return parser.parse_args()


def print_comparison(summary, found, processor, threads):
    print(f"{SHAPE}: {SHAPES[SHAPE]}; fp32, {threads} threads, {processor}\n")
    if summary:
        print(comparison_table(summary) + "\n")
    verdicts = {True: "holds", False: "does not hold", None: "open"}
    for what, holds, figures in found:
        print(f"* {verdicts[holds]}: {what} ({figures})")


def main():
    args = arguments()
    args.scratch.mkdir(parents=True, exist_ok=True)
    lstc, problems, before = Lstc(args.lstc, args.scratch, args.threads), [], machine()
    runs, summary, found, predictions = [], {}, [], []
    wanted = set(args.only)
    try:
        lstc.check()
    except Unmeasured as problem:
        if wanted != {"peers"}:
            problems.append(str(problem))
        wanted &= {"peers"}
    if wanted & {"peers", "lstc"}:
        runs = compare(args, wanted, lstc, problems)
        summary = summarise(runs)
        found = goals(summary)
        print_comparison(summary, found, before["processor"], args.threads)
    if "predict" in wanted:
        predictions = predict(args, lstc, runs, problems)
        if predictions:
            print("\nPredicted memory\n\n" + prediction_table(predictions))
    if before["load"][0] > IDLE:
        print(f"\nThe machine was not idle: its load was {before['load'][0]:.1f} at the start.")
    for problem in problems:
        tell(f"error: {problem}")

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
