"""Which functions an operator needs, by name, ready to put into a model."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import FunctionProto
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import SCALE_TYPES, Format, Minifloat, get_format
from onnxq.formats.tiled import TILED_FORMATS
from onnxq.functions import bodies, rounding, tiled

DOMAIN = "onnxq"
VERSION = 1

# Families that call others, the outermost first.
_CALLERS = ("Linear", "MatMul", "Dequantize")

# Functions that round activations, none of which calls another.
_ROUNDING: dict[str, Callable[[Opset, Any], OnnxFunction[Any, Any]]] = {
    "QuantizeDequantize": rounding.quantize_dequantize,
    "QuantizeDequantizeAsymmetric": rounding.quantize_dequantize_asymmetric,
    "RowScale": rounding.row_scale,
    "RowRange": rounding.row_range,
}
_FAMILIES = ("Scale", "Dequantize", "MatMul", "Linear", "QuantizeDequantize", "RowScale", "RowRange")


def operator_suffix(kind: Format) -> str:
    """How operators name a format: `FP6E2M3`, `INT3`, `NF4`."""
    if isinstance(kind, Minifloat):
        return f"FP{kind.bits}E{kind.exponent_bits}M{kind.mantissa_bits}"
    return kind.name.upper()


def functions(operators: Iterable[str], opset: int) -> list[ir.Function]:
    """The functions of some operators, each behind those that it calls, as onnx.reference wants them.

    Args:
        operators: Types in the domain of onnxq: `MatMulFP6E2M3`, `DequantizeINT3Asymmetric`, `MatMulINT4Tiled`,
            `ScaleE8M0`.
        opset: The version of the standard operators that the model imports, 13 or later.
    """
    protos = {proto.name: proto for operator in operators for proto in _with_callees(operator)}
    made = []
    for name in sorted(protos, key=lambda name: ([name.startswith(each) for each in _CALLERS], name)):
        function = ir.serde.deserialize_function(protos[name])
        function.opset_imports.update({"": opset, DOMAIN: VERSION})
        made.append(function)
    return made


def format_of(suffix: str) -> Format:
    """The format that operators name so."""
    minifloat = re.fullmatch(r"(FP\d)(E\dM\d)", suffix)
    return get_format("_".join(minifloat.groups()).lower() if minifloat else suffix.lower())


@cache
def _with_callees(operator: str) -> tuple[FunctionProto, ...]:
    """The function of one operator and those that it calls."""
    domain = Opset(DOMAIN, VERSION)
    match = re.fullmatch(rf"({'|'.join(_FAMILIES)})(.+?)(Tiled)?(Asymmetric)?", operator)
    if match is None:
        raise ValueError(operator)
    family, suffix, in_tiles, asymmetric = match.groups()
    if family == "Scale":
        codes = np.arange(256, dtype=np.uint8)
        values = codes.view(SCALE_TYPES[suffix.lower()].dtype).astype(np.float32)
        return (_renamed(bodies.scale_from_codes(domain, values), {"Scale": operator}),)
    kind = format_of(suffix)
    if in_tiles:
        return _tiled(operator, kind, family, asymmetric or "")
    if family in _ROUNDING:
        name = f"{family}{asymmetric or ''}"
        return (_renamed(_ROUNDING[name](domain, kind), {name: operator}),)
    names = {
        "Unpack": f"Unpack{kind.bits}",
        "Dequantize": f"Dequantize{suffix}",
        "DequantizeAsymmetric": f"Dequantize{suffix}Asymmetric",
        "MatMul": f"MatMul{suffix}",
        "MatMulAsymmetric": f"MatMul{suffix}Asymmetric",
        "Linear": f"Linear{suffix}",
        "LinearAsymmetric": f"Linear{suffix}Asymmetric",
    }
    unpacking = bodies.unpack(domain, kind.bits)
    dequantizing = (bodies.dequantize_asymmetric if asymmetric else bodies.dequantize)(domain, kind, unpacking)
    scripts = [unpacking, dequantizing]
    if family in ("MatMul", "Linear"):
        scripts.append((bodies.matmul_asymmetric if asymmetric else bodies.matmul)(domain, dequantizing))
    if family == "Linear":
        scripts.append((bodies.linear_asymmetric if asymmetric else bodies.linear)(domain, scripts[-1]))
    return tuple(_renamed(each, names) for each in scripts)


def _tiled(operator: str, kind: Format, family: str, asymmetric: str) -> tuple[FunctionProto, ...]:
    """The functions of `MatMul<F>Tiled` or `Linear<F>Tiled`."""
    if family not in ("MatMul", "Linear") or kind.name not in TILED_FORMATS:
        raise ValueError(operator)
    domain, suffix = Opset(DOMAIN, VERSION), operator_suffix(kind)
    untiling = tiled.untile(domain, kind)
    scripts = [untiling, (tiled.matmul_tiled_asymmetric if asymmetric else tiled.matmul_tiled)(domain, kind, untiling)]
    names = {untiling.name: f"Untile{suffix}", scripts[1].name: f"MatMul{suffix}Tiled{asymmetric}"}
    if family == "Linear":
        scripts.append((tiled.linear_tiled_asymmetric if asymmetric else tiled.linear_tiled)(domain, scripts[1]))
        names[scripts[2].name] = operator
    return tuple(_renamed(each, names) for each in scripts)


def _renamed(script: OnnxFunction[Any, Any], names: dict[str, str]) -> FunctionProto:
    """The function with its own name, and with calls of other functions by theirs."""
    proto: FunctionProto = script.to_function_proto()
    proto.name = names[proto.name]
    for node in proto.node:
        if node.domain == DOMAIN:
            node.op_type = names[node.op_type]
    return proto
