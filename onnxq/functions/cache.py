"""Function bodies in onnxscript for a quantized cache: [batch, heads, tokens, size] float to packed codes and back.

A row of a head is packed on its own, so its size times the bits must fill whole bytes, and its size be a multiple of 8.
As in `bodies`, all opsets from 13 on have what these use.
"""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

import math

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset13 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import Format, Integer, Minifloat

_FLOAT = int(onnx.TensorProto.FLOAT)
_FLOAT16 = int(onnx.TensorProto.FLOAT16)
_INT32 = int(onnx.TensorProto.INT32)
_UINT8 = int(onnx.TensorProto.UINT8)
# The smallest normal float16, since scales of tokens are stored as such.
_SMALLEST_SCALE = np.float32(2**-14)
_SMALLEST_FLOAT = np.float32(2**-126)


def _tensor(values):
    return numpy_helper.from_array(np.array(values))


def largest(kind: Format) -> float:
    """What the largest magnitude of a row becomes: of integers the largest that both signs have."""
    return float(np.nanmax(kind.values))


def pack(domain: Opset, bits: int) -> OnnxFunction:
    """`Pack<bits>(codes)`: int32 [8 n] to dense bytes [bits n], the inverse of `Unpack<bits>`.

    Each code lies within two neighbouring bytes; the codes of a byte have no bit in common, so that they add up.
    """
    position = np.arange(8) * bits
    shift = _tensor((2 ** (position % 8)).astype(np.int32))
    low = (position[:, None] // 8 == np.arange(bits)).astype(np.float32)
    high = (position[:, None] // 8 + 1 == np.arange(bits)).astype(np.float32)
    low, high = _tensor(low), _tensor(high)
    byte = _tensor(np.int32(256))

    @script(domain, default_opset=op)
    def Pack(codes):
        shifted = op.Reshape(codes, op.Constant(value_ints=[-1, 8])) * op.Constant(value=shift)
        lower = op.Cast(op.Mod(shifted, op.Constant(value=byte)), to=_FLOAT)
        upper = op.Cast(shifted / op.Constant(value=byte), to=_FLOAT)
        rows = op.MatMul(lower, op.Constant(value=low)) + op.MatMul(upper, op.Constant(value=high))
        return op.Reshape(op.Cast(rows, to=_UINT8), op.Constant(value_ints=[-1]))

    return Pack


def cache_scale(domain: Opset, kind: Format) -> OnnxFunction:
    """`CacheScale<F>(x)`: for each row along the last axis the float16 scale that brings it into the format's range."""
    divisor, smallest = _tensor(np.float32(largest(kind))), _tensor(_SMALLEST_SCALE)

    @script(domain, default_opset=op)
    def CacheScale(x):
        top, _ = op.TopK(op.Abs(op.Cast(x, to=_FLOAT)), op.Constant(value_ints=[1]), axis=-1)
        return op.Cast(op.Max(top / op.Constant(value=divisor), op.Constant(value=smallest)), to=_FLOAT16)

    return CacheScale


def integer_codes(domain: Opset, kind: Integer) -> OnnxFunction:
    """Codes of the nearest integers."""
    low, high = _tensor(np.float32(kind.low)), _tensor(np.float32(kind.high))
    wrap = _tensor(np.int32(2**kind.bits))

    @script(domain, default_opset=op)
    def CacheCodes(units):
        rounded = op.Max(op.Min(op.Round(units), op.Constant(value=high)), op.Constant(value=low))
        modulus = op.Constant(value=wrap)
        return op.Mod(op.Cast(rounded, to=_INT32) + modulus, modulus)

    return CacheCodes


def minifloat_codes(domain: Opset, kind: Minifloat) -> OnnxFunction:
    """Codes of the nearest floats, ties to even.

    In the binade 2^e the grid has step 2^(e-m); the code is round(|x| / step) plus 2^m for each binade above the first.
    A logarithm that falls short at a power of two changes nothing: the rounded number then carries into that binade.
    """
    top = _tensor(np.float32(largest(kind)))
    first = _tensor(np.float32(1 - kind.bias))
    mantissa = _tensor(np.float32(kind.mantissa_bits))
    binade = _tensor(np.float32(2**kind.mantissa_bits))
    two, log_two = _tensor(np.float32(2)), _tensor(np.float32(math.log(2)))
    tiny, zero = _tensor(_SMALLEST_FLOAT), _tensor(np.float32(0))
    sign = _tensor(np.int32(2 ** (kind.bits - 1)))

    @script(domain, default_opset=op)
    def CacheCodes(units):
        size = op.Min(op.Abs(units), op.Constant(value=top))
        exponent = op.Floor(op.Log(op.Max(size, op.Constant(value=tiny))) / op.Constant(value=log_two))
        exponent = op.Max(exponent, op.Constant(value=first))
        steps = op.Round(size * op.Pow(op.Constant(value=two), op.Constant(value=mantissa) - exponent))
        code = (exponent - op.Constant(value=first)) * op.Constant(value=binade) + steps
        negative = op.Cast(op.Less(units, op.Constant(value=zero)), to=_INT32)
        return op.Cast(code, to=_INT32) + negative * op.Constant(value=sign)

    return CacheCodes


def cache_quantize(domain: Opset, kind: Format, codes: OnnxFunction, packing: OnnxFunction) -> OnnxFunction:
    """`CacheQuantize<F>(x, scale)`: packed codes, uint8 [batch, heads, tokens, size * bits / 8], of x / scale."""
    bits = kind.bits

    @script(domain, default_opset=op)
    def CacheQuantize(x, scale):
        found = codes(op.Cast(x, to=_FLOAT) / op.Cast(scale, to=_FLOAT))
        rows = op.Slice(op.Shape(x), op.Constant(value_ints=[0]), op.Constant(value_ints=[3]))
        packed = packing(op.Reshape(found, op.Constant(value_ints=[-1])))
        return op.Reshape(packed, op.Concat(rows, op.Constant(value_ints=[-1]), axis=0))

    @script(domain, default_opset=op)
    def CacheQuantizeBytes(x, scale):
        return op.Cast(codes(op.Cast(x, to=_FLOAT) / op.Cast(scale, to=_FLOAT)), to=_UINT8)

    return CacheQuantizeBytes if bits == 8 else CacheQuantize


def cache_dequantize(domain: Opset, kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`CacheDequantize<F>(packed, scale) {dtype}`: value times scale; [1, heads, 1, size], or one number a row."""
    values = _tensor(kind.values)
    bits = kind.bits

    @script(domain, default_opset=op)
    def CacheDequantize(packed, scale, dtype: int):
        shape = op.Shape(packed)
        outer = op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        width = op.Slice(shape, op.Constant(value_ints=[3]), op.Constant(value_ints=[4]))
        size = width * op.Constant(value_ints=[8]) / op.Constant(value_ints=[bits])
        codes = unpacking(op.Reshape(packed, op.Constant(value_ints=[-1])))
        units = op.Gather(op.Constant(value=values), codes)
        rows = op.Reshape(units, op.Concat(outer, op.Constant(value_ints=[-1]), size, axis=0))
        return op.Cast(rows * op.Cast(scale, to=_FLOAT), to=dtype)

    @script(domain, default_opset=op)
    def CacheDequantizeBytes(packed, scale, dtype: int):
        units = op.Gather(op.Constant(value=values), op.Cast(packed, to=_INT32))
        return op.Cast(units * op.Cast(scale, to=_FLOAT), to=dtype)

    return CacheDequantizeBytes if bits == 8 else CacheDequantize
