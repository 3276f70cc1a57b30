"""The rows that `bare.py` runs: what each is called, and where its ONNX model comes from."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from lstc import note
from watch import watch


@dataclasses.dataclass(frozen=True)
class Row:
    """`model` makes the ONNX model of a shape where it is not there yet, and returns its file."""

    label: str
    model: Callable


def run(script, *arguments):
    watch([sys.executable, Path(__file__).with_name(script), *arguments])


def quantised(file, *options):
    """ONNX Runtime's dynamic int8 of the exported model."""

    def model(lstc, shape):
        exported = lstc.exported(shape)
        output = exported.with_name(file)
        if not output.is_file():
            note(f"quantising {shape}: {file}")
            run("quantise.py", exported, output, *options)
        return output

    return model


def generic(lstc, shape):
    output = lstc.exported(shape).with_name("generic.onnx")
    if not output.with_suffix(".json").is_file():
        note(f"decomposing the side network's step of {shape}")
        run("generic.py", shape, output)
    return output


def side(lstc, shape):
    """Made again each time, because it depends on this build of lstc."""
    tuned = lstc.rewritten(shape)
    run("side.py", tuned, tuned.with_name("side"))
    return tuned.with_name("side") / "side.onnx"


ROWS = {
    "ort": Row("ONNX Runtime, forward alone", lambda lstc, shape: lstc.exported(shape)),
    "ort-int8": Row("ONNX Runtime, forward alone, int8", quantised("int8.onnx")),
    "ort-int8-channels": Row("same, a scale a channel", quantised("int8-channels.onnx", "--per-channel")),
    "ort-int8-head": Row("same, LM head too", quantised("int8-head.onnx", "--per-channel", "--prepare")),
    "generic": Row("side network's step, generic decomposition", generic),
    "side": Row("side network's step, lstc's graph", side),
}
INT8 = ("ort-int8", "ort-int8-channels", "ort-int8-head")
