"""lstc on a GPU: losses against the CPU's, and what a training step takes beside PyTorch's. `cuda.sh` runs it.

    python benches/cuda.py --lstc LSTC --runtime libonnxruntime.so.1.31.1 --libraries FOLDERS --out RESULTS

The parts run in order of importance, each under a time limit, until --budget seconds are over; what is left then is reported
as not measured. A part that fails says why, and the others run. After each part table.md and results.json are written again.

Losses are of T5-nano, 20 steps on the first 640 of the glosses, and of T5-base's sizes, 5 steps. Steps are of T5-base's sizes, 128
tokens in and 8 out. The exit code is 0 when all losses agree, 1 when some do not, 2 when something could not be measured.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path

from lstc import write_examples
from shapes import SHAPES
from table import markdown
from watch import Unmeasured

HERE = Path(__file__).resolve().parent
WEIGHTS = 990_380_032  # bytes that tests/cases/shapes/t5_base.onnx refers to
BATCHES = (32, 100)
# lstc reports what each group of --log-every steps took on average. Those of the first and of the last group are reported when the device
# is not where the host is: they do not count.
STEPS, LOG_EVERY, COUNTED = 40, 4, range(11, 35)
CACHED_STEPS, CACHED_EPOCHS = 8, 3  # the first epoch fills the cache; the others are a group each
LIMIT = 100  # seconds of one command of lstc
ON, OFF = ("--cuda-graphs", "on"), ("--cuda-graphs", "off")
TF32, CACHE = ("--tf32",), ("--cache", "CACHE")  # CACHE, and EVAL below, stand for paths

# Two runs whose losses are compared: with `flags` on CUDA, and on the CPU or, with the flags `against`, on CUDA; `shared` are of
# both. `limit` is of the largest relative difference.
Check = namedtuple("Check", "label limit backbone flags shared against model", defaults=((), None, "nano"))
CHECKS = [
    Check("f32, graphs off, against the CPU", 1e-4, "source", OFF),
    Check("f32, graphs on, against the CPU", 1e-4, "source", ON),
    Check("f32, graphs on against off", 1e-5, "source", ON, against=OFF),
    Check("bf16, graphs on, against the CPU", 1e-2, "bf16", ON),
    Check("bf16, graphs on against off", 1e-5, "bf16", ON, against=OFF),
    Check("f32, 2 batches a step, against the CPU", 1e-4, "source", ON, shared=("--accumulate", "2", "--batch-size", "16")),
    Check("f32, with an evaluation, against the CPU", 1e-4, "source", ON, shared=("--eval", "EVAL")),
    Check("f32, taps kept, against the CPU", 1e-4, "source", CACHE),
    Check("int4, graphs on, against the CPU", None, "int4", ON),
    Check("TF32, graphs on, against the CPU's f32", None, "source", (*TF32, *ON)),
]
BASE_CHECK = Check("T5-base, f32, graphs on, against the CPU", 1e-4, "source", ON, model="base")

# A row of the table of steps.
Way = namedtuple("Way", "precision backbone graphs flags kept", defaults=("",))
F32, F32_PLAIN = Way("f32", "source", "on", ON), Way("f32", "source", "off", OFF)
BF16, BF16_PLAIN = Way("bf16", "bf16", "on", ON), Way("bf16", "bf16", "off", OFF)
INT4, INT4_PLAIN = Way("int4", "int4", "on", ON), Way("int4", "int4", "off", OFF)
WITH_TF32 = Way("tf32", "source", "on", (*TF32, *ON))
# A run on kept taps captures the backbone in its first epoch alone.
KEPT, KEPT_INT8 = (
    Way("f32", "source", "on", (*CACHE, "--cache-dtype", dtype, "--cuda-graphs", "auto"), f", taps kept in {dtype}")
    for dtype in ("fp32", "int8")
)

HELD = """GB held: what the sessions' arena, or PyTorch's allocator, held at most, in parentheses what of it was given out. GB of
the device: what the process took of it at most, its CUDA context included."""


class DeviceMemory:
    """The device memory that all processes hold, as nvidia-smi reports it every half second; nothing without it."""

    def __init__(self):
        self.seen, self.process = [], None
        query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
        if shutil.which(query[0]):
            self.process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.seen.append((time.monotonic(), int(line) << 20))

    def most(self, since):
        """The most bytes since then, beyond those before the first run. What was seen at once is of an earlier process."""
        return max((used - self.seen[0][1] for at, used in self.seen if at > since + 1), default=None)


class Bench:
    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.end = time.monotonic() + args.budget
        self.environment = os.environ | {"ORT_DYLIB_PATH": str(args.runtime), "LD_LIBRARY_PATH": args.libraries}
        self.log = (args.out / "log.txt").open("w")
        self.memory = DeviceMemory()
        self.made = {}  # by its path or, of the losses of a run, by what makes it

    def left(self):
        return self.end - time.monotonic()

    def execute(self, argv, limit, env=None):
        """Runs a command: what it wrote to stdout, to stderr, and what was wrong, or nothing. One that takes too long is killed."""
        argv, wrong = [str(part) for part in argv], ""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            try:
                ended = subprocess.run(argv, stdout=stdout, stderr=stderr, env=env, timeout=max(1, min(limit, self.left())))
                wrong = f"exit code {ended.returncode}" if ended.returncode else ""
            except OSError as error:
                wrong = str(error.strerror)
            except subprocess.TimeoutExpired as error:
                wrong = f"not done in {error.timeout:.0f} s"
            told, talk = (file.seek(0) or file.read() for file in (stdout, stderr))
        self.log.write(f"$ {' '.join(argv)}\n{told}{talk}{wrong}\n")
        self.log.flush()
        last = " / ".join(line.strip()[:160] for line in talk.splitlines()[-6:])
        return told, talk, wrong and f"{wrong}: {last}"

    def lstc(self, *arguments):
        """What lstc says on stderr."""
        _, talk, wrong = self.execute([self.args.lstc, *arguments], LIMIT, self.environment)
        if wrong:
            raise Unmeasured(f"lstc {arguments[0]}: {wrong}")
        return talk

    def once(self, name, make):
        """What `make` writes to a path of this name, once."""
        path = self.scratch / name
        if path not in self.made:
            make(path)
            self.made[path] = True
        return path

    def base(self, folder):
        """T5-base's graph with random weights."""
        import numpy

        folder.mkdir(exist_ok=True)
        shutil.copy(HERE.parent / "tests/cases/shapes/t5_base.onnx", folder / "model.onnx")
        draw = numpy.random.default_rng(0)
        with (folder / "weights.bin").open("wb") as file:
            for start in range(0, WEIGHTS, 1 << 26):
                count = min(1 << 26, WEIGHTS - start) // 4
                (draw.standard_normal(count, dtype=numpy.float32) * numpy.float32(0.05)).tofile(file)

    def rewritten(self, model, backbone):
        if model == "nano":
            source, flags = HERE.parent / "models/t5-nano/model.onnx", ["-r", 4, "--init", "magnitude-consistent"]
        else:
            source, flags = self.once("base", self.base) / "model.onnx", ["-r", 8, "--init", "random"]
        flags += ["--device", "cuda", "--backbone", backbone, "--max-tap-error", 1, "--force"]
        return self.once(f"{model}-{backbone}", lambda output: self.lstc("rewrite", source, "-o", output, *flags))

    def examples(self, batch, batches):
        shape = dataclasses.replace(SHAPES["t5-base"], batch=batch)
        return self.once(f"{batch}x{batches}.jsonl", lambda file: write_examples(shape, batches, file))

    def glosses(self, name, count):
        lines = (HERE.parent / f"examples/glosses.{name}.jsonl").read_text().splitlines(keepends=True)
        return self.once(f"{name}.jsonl", lambda file: file.write_text("".join(lines[:count])))

    def train(self, directory, data, steps, *flags):
        """Lines of a run's metrics log: of steps, which must be this many, and of evaluations; and the run's warnings."""
        output, cache = self.scratch / "run", self.scratch / "taps"
        paths = {"CACHE": cache, "EVAL": self.glosses("test", 100)}
        shutil.rmtree(output, ignore_errors=True)
        try:
            flags = [paths.get(flag, flag) for flag in flags]
            talk = self.lstc("train", directory, "--train", data, "--out", output, *flags)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        log, evaluations = [line for line in lines if "loss" in line], [line for line in lines if "eval_loss" in line]
        if len(log) != steps:
            raise Unmeasured(f"the run has {len(log)} steps, not {steps}")
        return log, evaluations, [line for line in talk.splitlines() if line.startswith("warning")]

    # ---------------------------------------------------------------------------------------------------- parts

    def losses(self, model, backbone, *flags):
        """Losses of the steps and of evaluations; norms of the gradients; warnings."""
        key = (model, backbone, flags)
        if key not in self.made:
            steps, data = (20, self.glosses("train", 640)) if model == "nano" else (5, self.examples(32, 5))
            size = () if "--batch-size" in flags else ("--batch-size", 32)
            directory = self.rewritten(model, backbone)
            log, evaluations, warnings = self.train(directory, data, steps, "--epochs", 1, "--log-every", 5, *size, *flags)
            losses = [line["loss"] for line in log] + [line["eval_loss"] for line in evaluations]
            self.made[key] = losses, [line["grad_norm"] for line in log], warnings
        return self.made[key]

    def check(self, check):
        one = self.losses(check.model, check.backbone, "--device", "cuda", *check.flags, *check.shared)
        device, flags = ("cpu", ()) if check.against is None else ("cuda", check.against)
        other = self.losses(check.model, check.backbone, "--device", device, *flags, *check.shared)
        losses, norms = (furthest(*values) for values in zip(one[:2], other[:2], strict=True))
        verdict = "reported" if check.limit is None else "PASS" if losses <= check.limit else "FAIL"
        row = {"losses": losses, "norms": norms, "limit": check.limit, "verdict": verdict}
        row |= {"values": one[0], "expected": other[0], "warnings": one[2]}
        return [row], f"losses {losses:.1e} apart, norms of the gradient {norms:.1e}: {verdict}"

    def step(self, way, batch):
        directory = self.rewritten("base", way.backbone)
        steps, epochs, every = (CACHED_STEPS, CACHED_EPOCHS, CACHED_STEPS) if way.kept else (STEPS, 1, LOG_EVERY)
        data, since = self.examples(batch, steps), time.monotonic()
        flags = ["--device", "cuda", "--batch-size", batch, "--epochs", epochs, "--log-every", every, *way.flags]
        log, _, warnings = self.train(directory, data, steps * epochs, *flags)
        counted = [line["seconds"] for line in log if (line["epoch"] > 1 if way.kept else line["step"] in COUNTED)]
        row = {"label": f"`lstc train`{way.kept}", "precision": way.precision, "graphs": way.graphs, "batch": batch}
        row |= {"median": statistics.median(counted), "seconds": [line["seconds"] for line in log]}
        row |= {"held": max(line["peak_memory"] for line in log), "loss": log[-1]["loss"], "warnings": warnings}
        row["device"] = self.memory.most(since)
        return [row], f"{row['median'] * 1e3:.1f} ms a step, {row['held'] / 1e9:.2f} GB"

    def peers(self, *arguments):
        """Rows of cuda_peers.py, which stops early enough that what it has measured is not lost."""
        argv = [sys.executable, "-B", HERE / "cuda_peers.py", "--budget", self.left() - 20, *arguments]
        told, _, wrong = self.execute(argv, self.left())
        rows = [json.loads(line) for line in told.splitlines()]
        for row in rows:
            row["label"] = f"PyTorch, {row['label']}"
            row["title"] = f"{row['label']}, {row['precision']}, graphs {row['graphs']}, batch {row['batch']}"
        if wrong:
            rows.append({"error": f"not measured: cuda_peers.py: {wrong}"})
        missing = sum("error" in row for row in rows)
        return rows, f"{len(rows) - missing} rows" + (f", {missing} not measured" if missing else "")


def furthest(values, expected):
    """The largest relative difference."""
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(values, expected, strict=True))


def parts(bench):
    """Title, seconds below which it is not begun, and what measures it. What matters most comes first."""

    def check(check, seconds=8):
        return check.label, seconds, lambda: bench.check(check)

    def steps(*ways):
        for batch in BATCHES:
            for way in ways:
                title = f"lstc train{way.kept}, {way.precision}, graphs {way.graphs}, batch {batch}"
                yield title, 12, lambda way=way, batch=batch: bench.step(way, batch)

    def peers(title, *arguments):
        return f"PyTorch, {title}", 35, lambda: bench.peers(*arguments)

    yield from map(check, CHECKS)
    yield from steps(F32, BF16)
    yield peers("f32 and bf16", "--precisions", "f32", "bf16")
    yield from steps(F32_PLAIN, BF16_PLAIN, INT4, KEPT, WITH_TF32)
    yield peers("CUDA graphs", "--graphs", "--methods", "lst", "lora", "full", "--precisions", "bf16", "f32")
    yield peers("TF32", "--precisions", "tf32")
    yield check(BASE_CHECK, 30)
    yield from steps(INT4_PLAIN, KEPT_INT8)


def tables(rows):
    """Of losses, and of steps."""
    losses = [
        [row["title"], len(row["values"]), f"{row['losses']:.1e}", f"{row['norms']:.1e}", row["limit"] or "", row["verdict"]]
        for row in rows if "verdict" in row
    ]  # fmt: skip
    measured = {(row["label"], row["precision"], row["graphs"], row["batch"]): row for row in rows if "median" in row}
    header = ["step", "precision", "CUDA graphs"]
    for batch in BATCHES:
        header += [f"batch {batch}: ms", "GB held", "GB of the device"]

    def figures(row):
        if not row:
            return ["-"] * 3
        held, allocated, device = (f"{row[key] / 1e9:.2f}" if row.get(key) else "" for key in ("held", "allocated", "device"))
        return [f"{row['median'] * 1e3:.1f}", held + (f" ({allocated})" if allocated else ""), device or "-"]

    ways = dict.fromkeys(key[:3] for key in measured)
    steps = [[*way, *(cell for batch in BATCHES for cell in figures(measured.get((*way, batch))))] for way in ways]
    titles = ["losses", "values", "largest relative difference", "of gradient norms", "at most", ""]
    return [markdown(head, [[str(cell) for cell in line] for line in lines]) for head, lines in ((titles, losses), (header, steps))]


def write(out, facts, rows):
    """Writes the report, and returns it."""
    (out / "results.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    sections = [
        "; ".join(f"{name}: {value}" for name, value in facts.items()),
        *tables(rows),
        HELD,
    ]
    remarks = {}
    for row in rows:
        if "error" in row:
            remarks.setdefault(row["error"], []).append(row["title"])
        for warning in row.get("warnings", ()):
            remarks.setdefault(warning, []).append(row["title"])
    sections += [f"{text}:\n{'; '.join(dict.fromkeys(titles))}" for text, titles in remarks.items()]
    report = "\n\n".join(sections) + "\n"
    (out / "table.md").write_text(report)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lstc", type=Path, required=True, help="the binary")
    parser.add_argument("--runtime", type=Path, required=True, help="ONNX Runtime's library")
    parser.add_argument("--libraries", default="", help="search path of NVIDIA's libraries, for lstc alone")
    parser.add_argument("--out", type=Path, default=HERE.parent / "target/cuda-results")
    parser.add_argument("--budget", type=float, default=420, help="seconds in all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lstc-cuda-") as scratch:
        bench = Bench(args, Path(scratch))
        card = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        versions = {"card": card, "lstc": [args.lstc, "--version"]}
        facts = {name: bench.execute(argv, 20, bench.environment)[0].strip() or "unknown" for name, argv in versions.items()}
        for title, seconds, measure in parts(bench):
            begun = bench.left()
            try:
                if begun < seconds:
                    raise Unmeasured("out of time")
                found, told = measure()
            except Exception as error:  # whatever it was, the other parts still run
                told = f"not measured: {error if isinstance(error, Unmeasured) else repr(error)}"
                found = [{"error": told}]
            took = begun - bench.left()
            rows += [{"title": title, "took": took} | row for row in found]
            print(f"{args.budget - bench.left():5.0f} s  {title}: {told[:300]} ({took:.1f} s)", flush=True)
            report = write(args.out, facts, rows)
        if bench.memory.process:
            bench.memory.process.kill()
    print(f"\n{report}", flush=True)
    sys.exit(2 if any("error" in row for row in rows) else any(row.get("verdict") == "FAIL" for row in rows))


if __name__ == "__main__":
    main()
