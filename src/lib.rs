//! `lstc`: a compiler from an ONNX transformer to a ladder side-tuning training step.
