"""Calibration: data readers, what is asked of a model's activations, and the run that lets onnxruntime compute it."""
