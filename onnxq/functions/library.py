"""Which functions an operator needs, by name, ready to put into a model."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import FunctionProto
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import LEARNED_FORMATS, SCALE_TYPES, Format, Integer, Minifloat, get_format
from onnxq.formats.tiled import TILED_FORMATS
from onnxq.functions import bodies, learned, rounding, tiled
from onnxq.functions import cache as cache_bodies
from onnxq.functions.partly_binary import partly_binary
from onnxq.model.operators import DOMAIN

VERSION = 1

# Families that call others, the outermost first.
_CALLERS = ("Linear", "SwiGLU", "MatMul", "CacheQuantize", "CacheDequantize", "Dequantize", "Gather", "PartlyBinary")

# Functions that round activations, none of which calls another.
_ROUNDING: dict[str, Callable[[Opset, Any], OnnxFunction[Any, Any]]] = {
    "QuantizeDequantize": rounding.quantize_dequantize,
    "QuantizeDequantizeAsymmetric": rounding.quantize_dequantize_asymmetric,
    "RowScale": rounding.row_scale,
    "RowBinade": rounding.row_binade,
    "RowRange": rounding.row_range,
}
# Dequantizing, multiplying, and multiplying with a bias: with zero points or not, with a table or not.
_WEIGHTS: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {
    (False, False): (bodies.dequantize, bodies.matmul, bodies.linear),
    (True, False): (bodies.dequantize_asymmetric, bodies.matmul_asymmetric, bodies.linear_asymmetric),
    (False, True): (learned.dequantize, learned.matmul, learned.linear),
}
# Functions that no format is in the name of, and that call no other.
_WITHOUT_FORMAT: dict[str, Callable[[Opset], OnnxFunction[Any, Any]]] = {
    "AddOutliers": bodies.add_outliers,
    "Hadamard": bodies.hadamard,
}
_FAMILIES = (
    "Scale",
    "Dequantize",
    "Gather",
    "MatMul",
    "Linear",
    "SwiGLU",
    "QuantizeDequantize",
    "RowScale",
    "RowBinade",
    "RowRange",
)


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
    if operator.startswith("Cache"):
        return _of_cache(domain, operator)
    if operator in _WITHOUT_FORMAT:
        body = _WITHOUT_FORMAT[operator]
        return (_named(body(domain), {operator: operator}, _text(body)),)
    if operator == "PartlyBinary":
        unpacking = bodies.unpack(domain, 1)
        names = {"Unpack": "Unpack1", operator: operator}
        whole = _named(partly_binary(domain, unpacking), names, _text(partly_binary))
        return _named(unpacking, names, _text(bodies.unpack, bits="1")), whole
    match = re.fullmatch(rf"({'|'.join(_FAMILIES)})(.+?)(Tiled)?(Asymmetric)?", operator)
    if match is None:
        raise ValueError(operator)
    family, suffix, in_tiles, asymmetric = match.groups()
    if family == "Scale":
        codes = np.arange(256, dtype=np.uint8)
        values = codes.view(SCALE_TYPES[suffix.lower()].dtype).astype(np.float32)
        made = bodies.scale_from_codes(domain, values)
        return (_named(made, {"Scale": operator}, _text(bodies.scale_from_codes, F=suffix)),)
    kind = format_of(suffix)
    if in_tiles:
        return _tiled(operator, kind, family, asymmetric or "")
    if family in _ROUNDING:
        name = f"{family}{asymmetric or ''}"
        rounding = _ROUNDING[name]
        return (_named(rounding(domain, kind), {name: operator}, _text(rounding, F=suffix)),)
    names = {
        "Unpack": f"Unpack{kind.bits}",
        "Gather": operator,
        "GatherAsymmetric": operator,
        "Dequantize": f"Dequantize{suffix}",
        "DequantizeAsymmetric": f"Dequantize{suffix}Asymmetric",
        "MatMul": f"MatMul{suffix}",
        "MatMulAsymmetric": f"MatMul{suffix}Asymmetric",
        "Linear": f"Linear{suffix}",
        "LinearAsymmetric": f"Linear{suffix}Asymmetric",
    }
    if kind.name in LEARNED_FORMATS and (asymmetric or family == "Gather"):
        raise ValueError(operator)
    dequantize, matmul, linear = _WEIGHTS[asymmetric is not None, kind.name in LEARNED_FORMATS]
    unpacking = bodies.unpack(domain, kind.bits)
    scripts: list[tuple[Any, OnnxFunction[Any, Any]]] = [(bodies.unpack, unpacking)]
    if family == "Gather":
        looking_up = bodies.gather_asymmetric if asymmetric else bodies.gather
        scripts.append((looking_up, looking_up(domain, kind, unpacking)))
    else:
        dequantizing = dequantize(domain, kind, unpacking)
        scripts.append((dequantize, dequantizing))
        if family in ("MatMul", "Linear"):
            scripts.append((matmul, matmul(domain, dequantizing)))
        if family == "Linear":
            scripts.append((linear, linear(domain, scripts[-1][1])))
    return tuple(_named(made, names, _text(body, F=suffix, bits=str(kind.bits))) for body, made in scripts)


def _tiled(operator: str, kind: Format, family: str, asymmetric: str) -> tuple[FunctionProto, ...]:
    """The functions of `MatMul<F>Tiled`, `Linear<F>Tiled`, `SwiGLU<F>Tiled` or `Gather<F>Tiled`."""
    if family not in ("MatMul", "Linear", "SwiGLU", "Gather") or kind.name not in TILED_FORMATS:
        raise ValueError(operator)
    domain, suffix = Opset(DOMAIN, VERSION), operator_suffix(kind)
    untiling = tiled.untile(domain, kind)
    if family == "Gather":
        reading = tiled.gather_tiled_asymmetric if asymmetric else tiled.gather_tiled
    else:
        reading = tiled.matmul_tiled_asymmetric if asymmetric else tiled.matmul_tiled
    multiplying = reading(domain, kind, untiling)
    scripts: list[tuple[Any, OnnxFunction[Any, Any]]] = [(tiled.untile, untiling), (reading, multiplying)]
    names = {untiling.name: f"Untile{suffix}", multiplying.name: f"MatMul{suffix}Tiled{asymmetric}"}
    if family == "Linear":
        linear = tiled.linear_tiled_asymmetric if asymmetric else tiled.linear_tiled
        scripts.append((linear, linear(domain, multiplying)))
    elif family == "SwiGLU":
        gating, gated = tiled.swiglu(domain), tiled.swiglu_tiled_asymmetric if asymmetric else tiled.swiglu_tiled
        scripts += [(tiled.swiglu, gating), (gated, gated(domain, multiplying, gating))]
        names[gating.name] = gating.name
    names[scripts[-1][1].name] = operator
    return tuple(_named(made, names, _text(body, F=suffix)) for body, made in scripts)


def _of_cache(domain: Opset, operator: str) -> tuple[FunctionProto, ...]:
    match = re.fullmatch(r"(CacheScale|CacheQuantize|CacheDequantize)(.+)", operator)
    if match is None:
        raise ValueError(operator)
    family, suffix = match.groups()
    kind = format_of(suffix)
    scripts: list[tuple[Any, OnnxFunction[Any, Any]]]
    if family == "CacheScale":
        scripts = [(cache_bodies.cache_scale, cache_bodies.cache_scale(domain, kind))]
    elif family == "CacheDequantize":
        unpacking = bodies.unpack(domain, kind.bits)
        dequantizing = cache_bodies.cache_dequantize(domain, kind, unpacking)
        scripts = [(bodies.unpack, unpacking), (cache_bodies.cache_dequantize, dequantizing)]
    else:
        finding: Any = cache_bodies.integer_codes if isinstance(kind, Integer) else cache_bodies.minifloat_codes
        codes, packing = finding(domain, kind), cache_bodies.pack(domain, kind.bits)
        quantizing = cache_bodies.cache_quantize(domain, kind, codes, packing)
        scripts = [(finding, codes), (cache_bodies.pack, packing), (cache_bodies.cache_quantize, quantizing)]
    names = {
        "Unpack": f"Unpack{kind.bits}",
        "Pack": f"Pack{kind.bits}",
        "CacheCodes": f"CacheCodes{suffix}",
        **{
            f"{each}{tail}": f"{each}{suffix}"
            for each in ("CacheQuantize", "CacheDequantize")
            for tail in ("", "Bytes")
        },
        "CacheScale": operator,
    }
    protos = [_named(made, names, _text(body, F=suffix, bits=str(kind.bits))) for body, made in scripts]
    used = {node.op_type for proto in protos for node in proto.node} | {operator}
    return tuple(proto for proto in protos if proto.name in used)


def _text(body: object, **parts: str) -> str:
    """What a graph viewer shows: the docstring of a body, `<F>` being the format."""
    text = inspect.cleandoc(body.__doc__ or "")
    return re.sub(r"<(\w+)>", lambda part: parts.get(part[1], part[0]), text)


def _named(script: OnnxFunction[Any, Any], names: dict[str, str], text: str) -> FunctionProto:
    """The function with its own name and doc string, and with calls of other functions by their names."""
    proto: FunctionProto = script.to_function_proto()
    proto.name, proto.doc_string = names[proto.name], text
    for node in proto.node:
        if node.domain == DOMAIN:
            node.op_type = names[node.op_type]
    return proto
