"""Trains a side network with train.onnx alone: python train.py tuned/ [steps]

Needs onnxruntime, numpy and safetensors. The batch is made up, of token ids from 2 to 31, and the labels are the decoder's
tokens one place ahead: put arrays of your own into `batch`. The result is trained.safetensors in the current folder.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file, save_file

folder, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
onnxruntime.set_default_logger_severity(3)  # errors only
session = onnxruntime.InferenceSession(str(folder / "train.onnx"), providers=["CPUExecutionProvider"])
side = load_file(folder / "side.safetensors")
moments = {port.name: np.zeros(port.shape, np.float32) for port in session.get_inputs() if port.name.startswith("adam.")}
state = side | moments

batch = {}
for port in session.get_inputs():  # the model's own inputs, and `labels`: [batch, length], of any size where symbolic
    if port.name not in state and port.name not in ("lr", "step"):
        shape = [size if isinstance(size, int) else default for size, default in zip(port.shape, (4, 8))]
        place = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + (port.name == "labels")
        batch[port.name] = np.ones_like(place) if "mask" in port.name else 2 + 7 * place % 30

outputs = [port.name for port in session.get_outputs()]
for step in range(1, steps + 1):
    scalars = {"lr": np.array(3e-3, np.float32), "step": np.array(step, np.int64)}
    results = dict(zip(outputs, session.run(outputs, batch | state | scalars)))
    state = {name: results[f"{name}.next"] for name in state}
    print(f"step {step:3}  loss {results['loss']:.7f}")
save_file({name: state[name] for name in side}, "trained.safetensors")
