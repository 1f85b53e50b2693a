"""The ONNX file: guarded load, all-or-nothing save, and where the weights and activations of a model are."""
