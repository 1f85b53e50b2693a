"""Function bodies that round activations to the grid of a format: a pair of Q and DQ in one operator.

Small floats are rounded by a cast to an FP8 type that has as many mantissa bits, at a scale at which the smallest
numbers of both meet; those need opset 19. Row scales need opset 18.
"""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset13 as op
from onnxscript import opset18, script
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import Format, Integer, Minifloat

_FLOAT = int(onnx.TensorProto.FLOAT)
_INT64 = int(onnx.TensorProto.INT64)
# By mantissa bits: the FP8 type, and its smallest subnormal.
_FP8 = {2: (int(onnx.TensorProto.FLOAT8E5M2), 2.0**-16), 3: (int(onnx.TensorProto.FLOAT8E4M3FN), 2.0**-9)}


def _number(value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.float32(value))


def rounds_by_fp8(kind: Format) -> bool:
    """Whether the function that rounds to a format casts to FP8."""
    return isinstance(kind, Minifloat) and kind.exponent_bits > 1 and kind.mantissa_bits in _FP8


def quantize_dequantize(domain: Opset, kind: Format) -> OnnxFunction:
    """`QuantizeDequantize<F>(x, scale) {dtype}`: x rounded to the nearest value of the format times the scale.

    Ties go to the even code; what lies beyond the largest value becomes it. `scale` is broadcast to `x`.
    """
    if rounds_by_fp8(kind):
        return _by_cast(domain, kind)
    if isinstance(kind, Minifloat) and kind.exponent_bits > 1:
        return _by_binade(domain, kind)
    # Floats of one exponent bit lie evenly, as integers do.
    step = float(kind.values[1])
    low, high = _number(kind.values.min() / step), _number(kind.values.max() / step)
    step_tensor = _number(step)

    @script(domain, default_opset=op)
    def QuantizeDequantize(x, scale, dtype: int):
        steps = op.Cast(scale, to=_FLOAT) * op.Constant(value=step_tensor)
        codes = op.Round(op.Cast(x, to=_FLOAT) / steps)
        return op.Cast(op.Clip(codes, op.Constant(value=low), op.Constant(value=high)) * steps, to=dtype)

    return QuantizeDequantize


def _by_cast(domain: Opset, kind: Minifloat) -> OnnxFunction:
    fp8, smallest = _FP8[kind.mantissa_bits]
    down, up = _number(smallest / kind.values[1]), _number(kind.values[1] / smallest)
    low, high = _number(-kind.max_value), _number(kind.max_value)

    @script(domain, default_opset=op)
    def QuantizeDequantize(x, scale, dtype: int):
        scales = op.Cast(scale, to=_FLOAT)
        units = op.Clip(op.Cast(x, to=_FLOAT) / scales, op.Constant(value=low), op.Constant(value=high))
        rounded = op.Cast(op.Cast(units * op.Constant(value=down), to=fp8), to=_FLOAT) * op.Constant(value=up)
        return op.Cast(rounded * scales, to=dtype)

    return QuantizeDequantize


def _by_binade(domain: Opset, kind: Minifloat) -> OnnxFunction:
    """Two exponent bits make three binades, in each of which values lie evenly."""
    if kind.exponent_bits != 2:
        raise ValueError(kind.name)
    first = float(kind.values[1])
    second, third = _number(2.0 * 2**kind.mantissa_bits * first), _number(4.0 * 2**kind.mantissa_bits * first)
    steps = [_number(first * 2**binade) for binade in range(3)]
    one, two, four = steps
    low, high = _number(-kind.max_value), _number(kind.max_value)

    @script(domain, default_opset=op)
    def QuantizeDequantize(x, scale, dtype: int):
        scales = op.Cast(scale, to=_FLOAT)
        units = op.Clip(op.Cast(x, to=_FLOAT) / scales, op.Constant(value=low), op.Constant(value=high))
        magnitude = op.Abs(units)
        wide = op.Where(magnitude < op.Constant(value=third), op.Constant(value=two), op.Constant(value=four))
        step = op.Where(magnitude < op.Constant(value=second), op.Constant(value=one), wide)
        return op.Cast(op.Round(units / step) * step * scales, to=dtype)

    return QuantizeDequantize


def quantize_dequantize_asymmetric(domain: Opset, kind: Integer) -> OnnxFunction:
    """`QuantizeDequantize<F>Asymmetric(x, scale, zero_point) {dtype}`: integers around a zero point.

    `zero_point` is an integer in float32; it and `scale` are broadcast to `x`.
    """
    low, high = _number(kind.low), _number(kind.high)

    @script(domain, default_opset=op)
    def QuantizeDequantizeAsymmetric(x, scale, zero_point, dtype: int):
        scales = op.Cast(scale, to=_FLOAT)
        codes = op.Round(op.Cast(x, to=_FLOAT) / scales) + zero_point
        inside = op.Clip(codes, op.Constant(value=low), op.Constant(value=high))
        return op.Cast((inside - zero_point) * scales, to=dtype)

    return QuantizeDequantizeAsymmetric


def row_scale(domain: Opset, kind: Format) -> OnnxFunction:
    """`RowScale<F>(x)`: for each row along the last axis the scale with which its largest magnitude fits, float32."""
    largest, smallest = _number(kind.max_value), _number(np.finfo(np.float32).smallest_normal)

    @script(domain, default_opset=opset18)
    def RowScale(x):
        last = opset18.Constant(value_ints=[-1])
        magnitude = opset18.ReduceMax(opset18.Abs(opset18.Cast(x, to=_FLOAT)), last, keepdims=1)
        return opset18.Max(magnitude / opset18.Constant(value=largest), opset18.Constant(value=smallest))

    return RowScale


def row_binade(domain: Opset, kind: Format) -> OnnxFunction:
    """`RowBinade<F>(x)`: as `RowScale<F>`, but the power of two that makes binades of the row those of the format.

    The binade of the row's largest magnitude becomes the highest one of the format (OCP MX v1.0, section 6.3).
    """
    exponents = np.arange(-126, 128)
    top = int(np.floor(np.log2(kind.max_value)))
    powers = numpy_helper.from_array(np.ldexp(np.float32(1), exponents))
    scales = numpy_helper.from_array(np.ldexp(np.float32(1), np.clip(exponents - top, -126, 126)))
    smallest, per_octave = _number(np.finfo(np.float32).smallest_normal), _number(1 / np.log(2))
    least, first, last = (numpy_helper.from_array(np.int64(each)) for each in (126, 0, len(exponents) - 1))
    half = _number(0.5)

    @script(domain, default_opset=opset18)
    def RowBinade(x):
        floats = opset18.Abs(opset18.Cast(x, to=_FLOAT))
        largest = opset18.ReduceMax(floats, opset18.Constant(value_ints=[-1]), keepdims=1)
        magnitude = opset18.Max(largest, opset18.Constant(value=smallest))
        octaves = opset18.Floor(opset18.Log(magnitude) * opset18.Constant(value=per_octave))
        begin, end = opset18.Constant(value=first), opset18.Constant(value=last)
        near = opset18.Clip(opset18.Cast(octaves, to=_INT64) + opset18.Constant(value=least), begin, end)
        # A logarithm may be off by one where a power of two is near.
        power = opset18.Gather(opset18.Constant(value=powers), near)
        above = opset18.Cast(power > magnitude, to=_INT64)
        below = opset18.Cast(power <= magnitude * opset18.Constant(value=half), to=_INT64)
        return opset18.Gather(opset18.Constant(value=scales), opset18.Clip(near - above + below, begin, end))

    return RowBinade


def row_range(domain: Opset, kind: Integer) -> OnnxFunction:
    """`RowRange<F>(x)`: for each row along the last axis a scale and a zero point, float32, that its values fit."""
    smallest = _number(np.finfo(np.float32).smallest_normal)
    low, high, span = _number(kind.low), _number(kind.high), _number(kind.high - kind.low)
    zero = _number(0.0)

    @script(domain, default_opset=opset18)
    def RowRange(x):
        last = opset18.Constant(value_ints=[-1])
        floats = opset18.Cast(x, to=_FLOAT)
        nothing = opset18.Constant(value=zero)
        top = opset18.Max(opset18.ReduceMax(floats, last, keepdims=1), nothing)
        bottom = opset18.Min(opset18.ReduceMin(floats, last, keepdims=1), nothing)
        wanted = (top - bottom) / opset18.Constant(value=span)
        scale = opset18.Max(wanted, opset18.Constant(value=smallest))
        begin = opset18.Constant(value=low)
        point = opset18.Clip(begin - opset18.Round(bottom / scale), begin, opset18.Constant(value=high))
        return scale, point

    return RowRange
