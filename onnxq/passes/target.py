"""Targets: which opset and IR version an output has, and which tensor types may stand in it."""

from typing import Literal, cast, get_args

import onnx_ir as ir
from onnx.helper import VERSION_TABLE

from onnxq.errors import UsageError, nearest
from onnxq.formats import Format, ScaleType, get_format
from onnxq.functions import rounds_by_fp8
from onnxq.recipes import ActivationSpec

Target = Literal["ort", "standard", "ort-int8", "ort-cuda", "native"]

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
# Tensor types that int8 holds without loss, with the factor between value and integer.
LOSSLESS_INT8 = {"FLOAT6E2M3": 8, "FLOAT4E2M1": 2}
_BLOCKED_OPSET = 21
_HALF_SCALES_OPSET = 19
# Casts to FP8, and reductions whose axes are an input, in the functions that round activations.
_FP8_OPSET, _FP8_IR_VERSION = 19, 9
_ROWS_OPSET = 18


def check_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in get_args(Target):
        raise UsageError(f"no target '{name}'; {nearest(name, get_args(Target))}")
    return cast("Target", name)


def is_standard_form(kind: Format, scale_type: ScaleType, dtype: ir.DataType, target: Target) -> bool:
    """Whether a target knows the types that a standard `DequantizeLinear` of a weight would have.

    Args:
        kind: Format of the codes.
        scale_type: Of the scales.
        dtype: Of the weight before; onnxruntime wants scales of the same type.
        target: Where the model goes.
    """
    if target == "standard":
        return kind.onnx_type is not None
    if target == "native":
        return False
    return kind.onnx_type in _DEQUANTIZE_SINCE and scale_type.onnx_type == dtype.name


def needed_versions(
    kind: Format, dtype: ir.DataType, target: Target, *, standard: bool, blocked: bool
) -> tuple[int, int]:
    """Opset and IR version that a weight needs.

    Args:
        kind: Format of the codes.
        dtype: Of the weight before.
        target: Where the model goes.
        standard: It leaves under a standard `DequantizeLinear`.
        blocked: Its scales lie in blocks along an axis.
    """
    if target == "standard":
        return STANDARD_OPSET, STANDARD_IR_VERSION
    onnx_type = str(kind.onnx_type)
    if target == "ort-int8" and onnx_type in LOSSLESS_INT8:
        onnx_type = "INT8"
    elif not standard:
        return FUNCTION_OPSET, FUNCTION_IR_VERSION
    opset, ir_version = _DEQUANTIZE_SINCE[onnx_type]
    if blocked:
        opset = max(opset, _BLOCKED_OPSET)
    elif dtype != ir.DataType.FLOAT:
        opset = max(opset, _HALF_SCALES_OPSET)
    return opset, max(ir_version, _ir_version_of(opset))


def has_pair(spec: ActivationSpec) -> bool:
    """Whether onnxruntime rounds such an activation with a pair of `QuantizeLinear` and `DequantizeLinear`."""
    return not spec.is_dynamic and get_format(spec.format).onnx_type in _DEQUANTIZE_SINCE


def activation_versions(spec: ActivationSpec, dtype: ir.DataType, target: Target = "ort") -> tuple[int, int]:
    """Opset and IR version that a rounded activation of type `dtype` needs."""
    if target == "standard":
        return STANDARD_OPSET, STANDARD_IR_VERSION
    kind = get_format(spec.format)
    if has_pair(spec):
        opset, ir_version = _DEQUANTIZE_SINCE[str(kind.onnx_type)]
        opset = max(opset, _HALF_SCALES_OPSET if dtype != ir.DataType.FLOAT else 0)
    elif rounds_by_fp8(kind):
        opset, ir_version = _FP8_OPSET, _FP8_IR_VERSION
    else:
        opset, ir_version = FUNCTION_OPSET, FUNCTION_IR_VERSION
    if spec.of_rows:
        opset = max(opset, _ROWS_OPSET)
    return opset, max(ir_version, _ir_version_of(opset))


def _ir_version_of(opset: int) -> int:
    """The IR version that was released with an opset (onnx.helper.VERSION_TABLE)."""
    return min(version for _, version, onnx_opset, *_ in VERSION_TABLE if onnx_opset >= opset)
