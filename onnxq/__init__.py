"""Turn an exported ONNX model into a smaller one, in FP6, FP4 or INT4, and run it in onnxruntime."""
