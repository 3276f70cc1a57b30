"""Where a side network's step spends its time, node by node: python benches/nodes.py tuned/ --shape t5-base

Cuts the side network out of a rewritten directory's train.onnx (`side.py`), runs it with ONNX Runtime's profiler, and
writes `benches/profile.md`: a table by operator and part (forward, backward, optimizer), and the most expensive nodes.
A kernel's time is the median of its runs. Of a node that ONNX Runtime has fused, the part is that of what makes its output.
"""

import argparse
import collections
import json
import os
import statistics
import tempfile
from pathlib import Path

import onnx
from bare import WARM_UP, Session, draw_feeds
from shapes import MODELS
from side import cut
from table import markdown

PARTS = ("forward", "backward", "optimizer")
PASSES = {"differentiate": "backward", "grad": "backward", "optimizer": "optimizer", "adamw": "optimizer"}


def part_of(node):
    """Which part of the step makes a node: by the pass in its metadata, else by its name."""
    for entry in node.metadata_props:
        if entry.value in PASSES:
            return PASSES[entry.value]
    if node.name.startswith(("adamw/", "adam.")) or node.output[0].endswith(".next"):
        return "optimizer"
    return "backward" if node.name.startswith("grad/") or node.output[0].endswith(".grad") else "forward"


def parts(model, optimised):
    """The part of each node of the optimised model, by name."""
    made = {output: part_of(node) for node in model.graph.node for output in node.output}
    return {node.name: next((made[o] for o in node.output if o in made), part_of(node)) for node in optimised.graph.node}


def profiled(side, shape, runs, threads, folder):
    """(name, operator, milliseconds of a run) of each node that was run, and the seconds of a run without the profiler."""
    session = Session(side, threads)
    session.bind(draw_feeds(session, shape))
    seconds = session.timed(runs)
    del session
    session = Session(side, threads, profile=folder / "side", optimised=folder / "side" / "optimised.onnx")
    session.bind(draw_feeds(session, shape))
    for _ in range(WARM_UP + runs):
        session.run()
    events = json.loads(Path(session.session.end_profiling()).read_text())
    spent = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"] / 1e3)
    nodes = [(name, operator, statistics.median(found[WARM_UP:])) for (name, operator), found in spent.items()]
    return nodes, statistics.median(seconds)


def tables(nodes, part):
    total = sum(spent for _, _, spent in nodes)
    share = lambda spent: f"{100 * spent / total:.1f} %"
    cell = collections.defaultdict(lambda: [0, 0.0])
    for name, operator, spent in nodes:
        for key in [(operator, part[name]), (operator, "all"), ("all", part[name]), ("all", "all")]:
            cell[key][0] += 1
            cell[key][1] += spent
    operators = sorted({operator for _, operator, _ in nodes}, key=lambda operator: -cell[operator, "all"][1])
    by_operator = []
    for operator in [*operators, "all"]:
        counts = [f"{cell[operator, p][0]}" if cell[operator, p][0] else "" for p in PARTS]
        times = [f"{cell[operator, p][1]:.2f}" if cell[operator, p][0] else "" for p in PARTS]
        count, spent = cell[operator, "all"]
        pairs = [text for pair in zip(counts, times) for text in pair]
        by_operator.append([operator, *pairs, f"{count}", f"{spent:.2f}", share(spent)])
    header = ["operator", *(text for p in [*PARTS, "all"] for text in (f"{p}, nodes", "ms")), "share"]
    dearest = sorted(nodes, key=lambda node: -node[2])[:20]
    rows = [[f"`{name}`", operator, part[name], f"{spent:.2f}", share(spent)] for name, operator, spent in dearest]
    return markdown(header, by_operator), markdown(["node", "operator", "part", "ms", "share"], rows), total


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="what `lstc rewrite` wrote")
    parser.add_argument("--shape", choices=MODELS, default="t5-base", help="whose batch and lengths; default: %(default)s")
    parser.add_argument("--runs", type=int, default=10, help="default: 10")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("profile.md"), help="default: %(default)s")
    args = parser.parse_args()
    shape, load = MODELS[args.shape], os.getloadavg()[0]
    # Beside the directory, where there is room for its weights.
    with tempfile.TemporaryDirectory(dir=args.directory.resolve().parent) as folder:
        folder = Path(folder)
        side = cut(args.directory, folder / "side")
        nodes, seconds = profiled(side, shape, args.runs, args.threads, folder)
        model = onnx.load(side, load_external_data=False)
        optimised = onnx.load(folder / "side" / "optimised.onnx", load_external_data=False)
        by_operator, dearest, total = tables(nodes, parts(model, optimised))
    args.output.write_text(
        f"# A side network's step, node by node\n\n"
        f"{args.shape}: {shape}; {args.threads} threads; `python benches/nodes.py tuned/ --shape {args.shape}`.\n\n"
        f"Of {len(model.graph.node)} nodes ONNX Runtime runs {len(nodes)}. A step takes {1e3 * seconds:.1f} ms; the medians of its "
        f"kernels add up to {total:.1f} ms. The machine's load was {load:.1f} at the start.\n\n"
        f"{by_operator}\n\nThe most expensive nodes:\n\n{dearest}\n"
    )


if __name__ == "__main__":
    main()
