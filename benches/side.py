"""lstc's side network alone: cut out of a rewritten directory's train.onnx, with taps as inputs.

    python benches/side.py tuned/ side/        writes side/side.onnx and copies the weights beside it

What is left is all that a step with cached taps runs: masks, position buckets, forward, backward, clipping, AdamW.
"""

import argparse
import shutil
from pathlib import Path

import onnx
import yaml


def cut(directory, output):
    """Writes `output`/side.onnx."""
    manifest = yaml.safe_load((directory / "lst.yaml").read_text())
    towers = {tower["kind"]: tower for tower in manifest["model"]["towers"]}
    taps = {tap["value"]: tap["tower"] for tap in manifest["taps"]}
    model = onnx.load(directory / "train.onnx", load_external_data=False)
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    reached, nodes, stack = set(), set(), [value.name for value in graph.output]
    while stack:
        value = stack.pop()
        if value in reached:
            continue
        reached.add(value)
        if value in made_by and value not in taps:
            nodes.add(id(made_by[value]))
            stack += [name for name in made_by[value].input if name]

    lengths = {"encoder": "source", "decoder": "target"}
    inputs = [value for value in graph.input if value.name in reached]
    for tap, tower in taps.items():
        if tap in reached:
            size = ["batch", lengths[tower], towers[tower]["width"]]
            inputs.append(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.FLOAT, size))
    keep(graph.node, [node for node in graph.node if id(node) in nodes])
    keep(graph.initializer, [value for value in graph.initializer if value.name in reached])
    keep(graph.input, inputs)

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for data in directory.glob("*.data"):
        shutil.copyfile(data, output / data.name)
    onnx.save(model, output / "side.onnx")
    return output / "side.onnx"


def keep(field, values):
    values = list(values)
    del field[:]
    field.extend(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cut(args.directory, args.output)


if __name__ == "__main__":
    main()
