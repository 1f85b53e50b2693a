"""Targets: which opset and IR version an output has, and which tensor types may stand in it."""

from typing import Literal, cast, get_args

from onnxq.errors import UsageError, nearest

Target = Literal["ort", "standard", "ort-int8"]

# What onnxruntime 1.31 loads at most; an output stays lower where its tensor types allow.
ORT_OPSET, ORT_IR_VERSION = 26, 13
# FLOAT6E2M3 and FLOAT6E3M2 (ONNX 1.23).
STANDARD_OPSET, STANDARD_IR_VERSION = 28, 14
# Model-local functions.
FUNCTION_OPSET, FUNCTION_IR_VERSION = 13, 8

# The opset from which DequantizeLinear takes a tensor type, and the IR version that has it.
_DEQUANTIZE_SINCE = {
    "INT8": (13, 3),
    "UINT8": (13, 3),
    "FLOAT8E4M3FN": (19, 9),
    "FLOAT8E5M2": (19, 9),
    "INT4": (21, 10),
    "UINT4": (21, 10),
    "INT2": (25, 13),
    "UINT2": (25, 13),
}
_BLOCKED_OPSET = 21


def check_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in get_args(Target):
        raise UsageError(f"no target '{name}'; {nearest(name, get_args(Target))}")
    return cast("Target", name)


def runs_in_ort(onnx_type: str | None) -> bool:
    """Whether onnxruntime dequantizes this tensor type itself."""
    return onnx_type in _DEQUANTIZE_SINCE


def needed_versions(onnx_type: str | None, target: Target, *, plain: bool) -> tuple[int, int]:
    """Opset and IR version that a weight of this type needs.

    Args:
        onnx_type: Tensor type of the codes; None where ONNX has none.
        target: Where the model goes.
        plain: One float32 scale in all or for each channel, without blocks.
    """
    if target == "standard":
        return STANDARD_OPSET, STANDARD_IR_VERSION
    if onnx_type is None or onnx_type not in _DEQUANTIZE_SINCE:
        return FUNCTION_OPSET, FUNCTION_IR_VERSION
    opset, ir_version = _DEQUANTIZE_SINCE[onnx_type]
    return (opset, ir_version) if plain else (max(opset, _BLOCKED_OPSET), max(ir_version, 10))
