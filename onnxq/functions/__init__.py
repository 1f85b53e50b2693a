"""The meaning of onnxq's operators, as functions of standard ONNX operators that travel in the model."""

from onnxq.functions.library import VERSION, format_of, functions, operator_suffix
from onnxq.functions.rounding import rounds_by_fp8
from onnxq.model.operators import DOMAIN

__all__ = ["DOMAIN", "VERSION", "format_of", "functions", "operator_suffix", "rounds_by_fp8"]
