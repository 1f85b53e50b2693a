"""The meaning of onnxq's operators, as functions of standard ONNX operators that travel in the model."""

from onnxq.functions.library import DOMAIN, VERSION, functions, operator_suffix

__all__ = ["DOMAIN", "VERSION", "functions", "operator_suffix"]
