"""How the cost of a training step grows with batch, length and blocks: seconds, peak memory, and the predicted peak.

    cargo build --release
    python benches/growth.py                               tables on stdout, plots in benches/plots
    python benches/growth.py --results growth.json         the same of results that were measured before

A small T5 (width 256, 4 heads of 64) with random weights; `--shape t5-base` takes T5-base for batch and length.

Cost must not grow faster than the work:

* With batch and blocks, the exponent of the upper half of a series (the slope of log cost over log n) is at most 1.1, for
  seconds and for memory.
* With length, t = a + b n + c n^2 is fitted with coefficients of at least 0. What attention alone takes at the longest
  length, c n^2 may take 1.5 times. For seconds that is measured: the scores, their softmax and the product with the
  values of every block of the encoder, and of every side block forward and backward, as a model of just these on
  ONNX Runtime. For memory it is the scores' size times the tensors that attention needs at once: one of each side
  block, kept for the backward pass, and 4 that are at work.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy
import onnx
from bare import Session
from lstc import REDUCTION, ROWS, Lstc, note
from shapes import GROWTH, MODELS
from table import markdown
from watch import Unmeasured

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("lstc", "lstc-int8", "lstc-cached")
STEEPEST, BEYOND_ATTENTION = 1.1, 1.5
IDLE = 0.5  # the load above which times are not to be trusted
AT_WORK = 4  # tensors of an attention's scores
SERIES = {"batch": (1, 2, 4, 8, 16, 32, 64), "length": (32, 64, 128, 256, 512, 1024), "blocks": (6, 12, 24, 48)}
AXES = {"batch": "examples a batch", "length": "tokens in", "blocks": "blocks of each tower"}
KEYS = {"seconds": "seconds a step", "peak": "peak memory, MB"}
COLOURS = {"lstc": "#0b5fa5", "lstc-int8": "#c2410c", "lstc-cached": "#15803d"}


def sized(series, n, base):
    """The model of a point, and its sizes."""
    if series == "blocks":
        return f"d256-{n}", MODELS[f"d256-{n}"]
    sizes = {"batch": n} if series == "batch" else {"source": n}
    return base, dataclasses.replace(MODELS[base], **sizes)


def measure(args, build, results, file, problems):
    """Measures every point that the results lack, and writes them after each."""
    there = {(point["series"], point["row"], point["n"]) for point in results["points"]}
    for series, row in itertools.product(args.series, args.rows):
        for n in SERIES[series]:
            if (series, row, n) in there:
                continue
            name, shape = sized(series, n, args.shape)
            note(f"{series} {n}: {row}")
            try:
                run = build.train(name, args.steps, row, shape)
                predicted = None if ROWS[row].cached else build.predicted(name, ROWS[row].rewrite, shape)
            except Unmeasured as problem:
                problems[f"{series}, {row}"] = str(problem)
                break
            found = {"seconds": run["median"], "peak": run["peak_memory"], "predicted": predicted}
            results["points"].append({"series": series, "row": row, "n": n} | found)
            file.write_text(json.dumps(results, indent=1) + "\n")
    results["points"].sort(key=lambda point: (list(SERIES).index(point["series"]), MEASURED.index(point["row"]), point["n"]))


def attention_model(batch, heads, length, width, trained):
    """Attention from q, k, v and a bias to its output; where it is trained, and from dy back to all four."""
    node, nodes = onnx.helper.make_node, []
    emit = lambda operator, inputs, output, **options: nodes.append(node(operator, inputs, [output], **options))
    emit("Transpose", ["k"], "kt", perm=[0, 1, 3, 2])
    emit("MatMul", ["q", "kt"], "product")
    emit("Add", ["product", "bias"], "scores")
    emit("Softmax", ["scores"], "p", axis=-1)
    emit("MatMul", ["p", "v"], "y")
    inputs, outputs = ["q", "k", "v", "bias"], ["y"]
    if trained:
        for operator, operands, output, options in [
            ("Transpose", ["v"], "vt", {"perm": [0, 1, 3, 2]}), ("MatMul", ["dy", "vt"], "dp", {}),
            ("Transpose", ["p"], "pt", {"perm": [0, 1, 3, 2]}), ("MatMul", ["pt", "dy"], "dv", {}),
            ("Mul", ["dp", "p"], "dpp", {}), ("ReduceSum", ["dpp", "last"], "inner", {}),
            ("Sub", ["dp", "inner"], "centred", {}), ("Mul", ["centred", "p"], "ds", {}),
            ("MatMul", ["ds", "k"], "dq", {}), ("Transpose", ["ds"], "dst", {"perm": [0, 1, 3, 2]}),
            ("MatMul", ["dst", "q"], "dk", {}), ("ReduceSum", ["ds", "first"], "dbias", {}),
        ]:
            emit(operator, operands, output, **options)
        inputs, outputs = [*inputs, "dy"], ["y", "dq", "dk", "dv", "dbias"]
    value = lambda name, size: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
    sizes = {name: [batch, heads, length, width] for name in "q k v dy".split()} | {"bias": [1, heads, length, length]}
    axes = [onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [axis]) for name, axis in [("last", -1), ("first", 0)]]
    graph = onnx.helper.make_graph(
        nodes, "attention", [value(name, sizes[name]) for name in inputs], [value(name, None) for name in outputs], axes
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def attention_seconds(shape, threads, cached):
    """What attention over the source takes of a step: in the backbone's encoder unless that is cached, and in the side's."""
    found = 0.0
    for width, trained in [(shape.d_kv, False), (shape.d_kv // REDUCTION, True)]:
        if cached and not trained:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "attention.onnx")
            onnx.save(attention_model(shape.batch, shape.heads, shape.source, width, trained), file)
            session = Session(file, threads)
        draw = numpy.random.default_rng(0)
        values = session.session.get_inputs()
        session.bind({value.name: draw.standard_normal(value.shape, numpy.float32) for value in values})
        runs = []
        for _ in range(7):
            start = time.perf_counter()
            session.run()
            runs.append(time.perf_counter() - start)
        found += shape.layers * float(numpy.median(runs[2:]))
    return found


def own(base, threads):
    """What attention alone takes at the longest length: seconds and bytes, with cached taps and without."""
    _, shape = sized("length", SERIES["length"][-1], base)
    scores = 4 * shape.batch * shape.heads * shape.source**2
    size = (shape.layers + AT_WORK) * scores
    return {row: {"seconds": attention_seconds(shape, threads, ROWS[row].cached), "peak": size} for row in MEASURED}


def fitted(ns, costs, powers):
    """Coefficients of at least 0 of the sum of powers of n that is nearest to the costs, relative to each."""
    costs = numpy.array(costs, float)
    terms = numpy.array([[float(n) ** power for power in powers] for n in ns]) / costs[:, None]
    best, least = numpy.zeros(len(powers)), numpy.inf
    for count in range(1, len(powers) + 1):
        for chosen in itertools.combinations(range(len(powers)), count):
            found = numpy.linalg.lstsq(terms[:, chosen], numpy.ones(len(ns)), rcond=None)[0]
            far = numpy.sum((terms[:, chosen] @ found - 1) ** 2)
            if (found >= 0).all() and far < least:
                best, least = numpy.zeros(len(powers)), far
                best[list(chosen)] = found
    return best


def exponent(ns, costs):
    """The slope of log cost over log n in the upper half, of at least three points."""
    upper = slice(-max(3, len(ns) // 2), None)
    return numpy.polyfit(numpy.log(ns[upper]), numpy.log(costs[upper]), 1)[0]


def judge(points, attention):
    """(series, row, cost, fit, exponent, what is compared with what, whether it holds) of every measured series."""
    found = []
    order = lambda point: (point["series"], point["row"])
    for (series, row), of in itertools.groupby(points, order):
        of = list(of)
        ns = [point["n"] for point in of]
        if len(ns) < 3:
            continue
        for key in KEYS:
            costs, digits = [point[key] for point in of], (lambda x: f"{x:.3g}")
            unit = (lambda x: f"{digits(x)} s") if key == "seconds" else (lambda x: f"{digits(x / 1e6)} MB")
            slope = exponent(ns, costs)
            if series == "length":
                a, b, c = fitted(ns, costs, (0, 1, 2))
                fit = f"{unit(a)} + {unit(b)} n + {unit(c)} n²"
                ours, most = c * ns[-1] ** 2, BEYOND_ATTENTION * attention[row][key] * (ns[-1] / SERIES["length"][-1]) ** 2
                against, holds = f"c n² is {unit(ours)}, at most {unit(most)}", ours <= most
            else:
                a, b = fitted(ns, costs, (0, 1))
                fit = f"{unit(a)} + {unit(b)} n"
                against, holds = f"{slope:.2f}, at most {STEEPEST}", slope <= STEEPEST
            found.append((series, row, key, fit, slope, against, bool(holds)))
    return found


def series_table(series, points):
    """A line for each n: seconds, peak and predicted peak of each row."""
    at = {(point["row"], point["n"]): point for point in points if point["series"] == series}
    names = [row for row in MEASURED if any(row == known for known, _ in at)]
    header = [AXES[series]]
    for row in names:
        header += [f"`{row}`, s/step", "peak, MB", *([] if ROWS[row].cached else ["predicted", "ratio"])]
    cells = []
    for n in SERIES[series]:
        line = [str(n)]
        for row in names:
            found = at.get((row, n))
            if found is None:
                line += [""] * (2 if ROWS[row].cached else 4)
                continue
            line += [f"{found['seconds']:.4f}", f"{found['peak'] / 1e6:.0f}"]
            if not ROWS[row].cached:
                line += [f"{found['predicted'] / 1e6:.0f}", f"{found['predicted'] / found['peak']:.2f}"]
        cells.append(line)
    return markdown(header, cells)


def plot(series, points, title, file):
    """Seconds and peak memory over n, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "lstc", "font.size": 9}
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for panel, (key, label) in zip(panels, KEYS.items()):
        unit = 1e6 if key == "peak" else 1
        for row in MEASURED:
            of = [point for point in points if point["series"] == series and point["row"] == row]
            if not of:
                continue
            ns = [point["n"] for point in of]
            panel.plot(ns, [point[key] / unit for point in of], "o-", color=COLOURS[row], markersize=4, label=row)
            if key == "peak" and of[0]["predicted"]:
                predicted = [point["predicted"] / unit for point in of]
                panel.plot(ns, predicted, "--", color=COLOURS[row], linewidth=1, label=f"{row}, predicted")
        panel.set(xscale="log", yscale="log", xlabel=AXES[series], ylabel=label)
        panel.set_xticks(SERIES[series], [str(n) for n in SERIES[series]])
        panel.minorticks_off()
        low, high = panel.get_ylim()
        ticks = [m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.grid(True, color="#dddddd", linewidth=0.6)
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lstc", type=Path, default=ROOT / "target/release/lstc", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=ROOT / "target/bench", help="default: %(default)s")
    parser.add_argument("--shape", choices=["d256-6", "t5-base"], default="d256-6", help="for batch and length; default: %(default)s")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="default: all")
    parser.add_argument("--rows", nargs="+", choices=MEASURED, default=list(MEASURED), help="default: all")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of a point; default: 7")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--plots", type=Path, default=Path(__file__).with_name("plots"), help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="measure only what growth.json in the scratch folder has not")
    parser.add_argument("--results", type=Path, help="judge and draw these instead of measuring")
    return parser.parse_args()


def main():
    args = arguments()
    problems, file = {}, args.scratch / "growth.json"
    results = {"shape": args.shape, "threads": args.threads, "load": os.getloadavg()[0], "points": [], "attention": None}
    if args.results or args.resume:
        results = json.loads((args.results or file).read_text())
    if not args.results:
        args.scratch.mkdir(parents=True, exist_ok=True)
        build = Lstc(args.lstc, args.scratch, args.threads)
        build.check()
        measure(args, build, results, file, problems)
        results["attention"] = own(results["shape"], args.threads)
        file.write_text(json.dumps(results, indent=1) + "\n")
    points = results["points"]
    args.plots.mkdir(parents=True, exist_ok=True)
    for series in dict.fromkeys(point["series"] for point in points):
        base = next(iter(GROWTH.values())) if series == "blocks" else MODELS[results["shape"]]
        fixed = {"batch": f"{base.batch} examples", "length": f"{base.source} tokens in", "blocks": f"{base.layers} + {base.layers} blocks"}
        title = f"width {base.d_model}, " + ", ".join(text for part, text in fixed.items() if part != series)
        title += f", {base.target} out, {results['threads']} threads"
        title += "; the machine was not idle" if results["load"] > IDLE else ""
        print(f"{AXES[series]}: {title}\n\n{series_table(series, points)}\n")
        plot(series, points, title, args.plots / f"{series}.svg")
    verdicts = judge(points, results["attention"])
    cells = [
        [series, f"`{row}`", KEYS[key].partition(",")[0], fit, f"{slope:.2f}", against, "holds" if holds else "does not hold"]
        for series, row, key, fit, slope, against, holds in verdicts
    ]
    print(markdown(["over", "row", "cost", "fit", "exponent, upper half", "criterion", ""], cells))
    for where, problem in problems.items():
        note(f"error: {where}: {problem}")
    return 2 if problems else 0 if all(verdict[-1] for verdict in verdicts) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unmeasured as problem:
        note(f"error: {problem}")
        sys.exit(2)
