"""The CUDA kernels of onnxq's operators: which one serves a product, how it is compiled, and how it is launched."""
