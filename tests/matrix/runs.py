"""Runs a model of the matrix under ONNX Runtime, whatever its files."""

import numpy as np
import onnx
import onnxruntime
import torch

KINDS = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}


def session_of(proto):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds_of(session, values):
    """A session's inputs by name; what is no value of the batch is an empty past, or off."""
    feeds = {}
    for port in session.get_inputs():
        if port.name in values:
            feeds[port.name] = np.asarray(values[port.name]).astype(KINDS[port.type])
        elif port.name == "use_cache_branch":
            feeds[port.name] = np.array([False])
        elif port.name.startswith("past_key_values"):
            batch = len(values["input_ids"])
            shape = [batch if i == 0 else dim if isinstance(dim, int) else 0 for i, dim in enumerate(port.shape)]
            feeds[port.name] = np.zeros(shape, KINDS[port.type])
    return feeds


def files_of(folder):
    """The files that make up the model, encoder first."""
    single = folder / "model.onnx"
    if single.exists():
        return [single]
    decoder = folder / "decoder_model.onnx"
    return [folder / "encoder_model.onnx", decoder if decoder.exists() else folder / "decoder_model_merged.onnx"]


def run(folder, batch, taps=None):
    """The model's logits. `taps`: (file, value) by any key; their values are returned beside the logits, by key."""
    batch = {name: value.numpy() for name, value in batch.items()} | {
        "decoder_attention_mask": np.ones_like(batch["decoder_input_ids"].numpy())
    }
    values, tapped = batch, {}
    for path in files_of(folder):
        proto = onnx.load(path)
        wanted = {key: name for key, (file, name) in (taps or {}).items() if file == path.name}
        ends = {value.name for value in proto.graph.output}
        for name in sorted(set(wanted.values()) - ends):
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
        session = session_of(proto)
        if "encoder_hidden_states" in {port.name for port in session.get_inputs()}:
            values = {"input_ids": batch["decoder_input_ids"], "encoder_attention_mask": batch["attention_mask"],
                      "encoder_hidden_states": found["last_hidden_state"]}
        names = [port.name for port in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds_of(session, values))))
        tapped |= {key: torch.from_numpy(np.asarray(found[name])) for key, name in wanted.items()}
    logits = torch.from_numpy(found["logits"].astype(np.float32))
    return logits if taps is None else (logits, tapped)
