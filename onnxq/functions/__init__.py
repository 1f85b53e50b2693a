"""The meaning of onnxq's operators, as functions of standard ONNX operators that travel in the model."""

from onnxq.functions.library import DOMAIN, VERSION, format_named, functions, operator_suffix

__all__ = ["DOMAIN", "VERSION", "format_named", "functions", "operator_suffix"]
