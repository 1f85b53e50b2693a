"""Function bodies in onnxscript. They use what every opset from 13 on has, so that no model must be lifted for them.

Whoever reads one of these in a graph viewer reads the definition of the operator; a native kernel gives the same
numbers. Names here are those of a family (`Dequantize`); `library` gives each member its own (`DequantizeFP6E2M3`).
"""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxscript import opset13 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import Format

_FLOAT = int(onnx.TensorProto.FLOAT)
_INT32 = int(onnx.TensorProto.INT32)
_INT64 = int(onnx.TensorProto.INT64)


def _tensor(array: npt.NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(array)


def unpack(domain: Opset, bits: int) -> OnnxFunction:
    """`Unpack<bits>(packed)`: dense bytes to codes, int32 [8 * ceil(bytes / bits)].

    Eight codes fill `bits` bytes; each lies within two neighbouring bytes, seen here as one number of sixteen bits.
    """
    position = np.arange(8) * bits
    first, second = _tensor(position // 8), _tensor(np.minimum(position // 8 + 1, bits - 1))
    divisor, modulus = _tensor((2 ** (position % 8)).astype(np.int32)), _tensor(np.int32(2**bits))
    byte = _tensor(np.int32(256))

    @script(domain, default_opset=op)
    def Unpack(packed):
        missing = op.Mod(op.Neg(op.Shape(packed)), op.Constant(value_ints=[bits]))
        padded = op.Pad(packed, op.Concat(op.Constant(value_ints=[0]), missing, axis=0))
        rows = op.Cast(op.Reshape(padded, op.Constant(value_ints=[-1, bits])), to=_INT32)
        low = op.Gather(rows, op.Constant(value=first), axis=1)
        high = op.Gather(rows, op.Constant(value=second), axis=1)
        shifted = (low + high * op.Constant(value=byte)) / op.Constant(value=divisor)
        return op.Reshape(op.Mod(shifted, op.Constant(value=modulus)), op.Constant(value_ints=[-1]))

    return Unpack


def dequantize(domain: Opset, kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`Dequantize<F>(packed, scale) {shape, axis, block_size, dtype}`.

    Element i along `axis` of the result is its value times the scale at i // block_size along the same axis.
    """
    values = _tensor(kind.values)

    @script(domain, default_opset=op)
    def Dequantize(packed, scale, shape: Sequence[int], axis: int, block_size: int, dtype: int):
        dims = op.Constant(value_ints=shape)
        count = op.ReduceProd(dims, keepdims=1)
        start = op.Constant(value_ints=[0])
        codes = op.Slice(unpacking(packed), start, count)
        units = op.Reshape(op.Gather(op.Constant(value=values), codes), dims)
        length = op.Gather(dims, op.Constant(value_int=axis))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=axis)
        return op.Cast(units * scales, to=dtype)

    return Dequantize


def dequantize_asymmetric(domain: Opset, kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`Dequantize<F>Asymmetric(packed, scale, zero_point) {...}`: as `Dequantize<F>`, of value - zero point.

    Zero points are codes of the same format, packed in the order of the scales.
    """
    values = _tensor(kind.values)

    @script(domain, default_opset=op)
    def DequantizeAsymmetric(packed, scale, zero_point, shape: Sequence[int], axis: int, block_size: int, dtype: int):
        dims = op.Constant(value_ints=shape)
        count = op.ReduceProd(dims, keepdims=1)
        start = op.Constant(value_ints=[0])
        codes = op.Slice(unpacking(packed), start, count)
        table = op.Constant(value=values)
        units = op.Reshape(op.Gather(table, codes), dims)
        length = op.Gather(dims, op.Constant(value_int=axis))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=axis)
        groups = op.ReduceProd(op.Shape(scale), keepdims=1)
        zero_codes = op.Slice(unpacking(zero_point), start, groups)
        zeros = op.Gather(op.Reshape(op.Gather(table, zero_codes), op.Shape(scale)), group, axis=axis)
        return op.Cast((units - zeros) * scales, to=dtype)

    return DequantizeAsymmetric


def gather(domain: Opset, kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`Gather<F>(packed, scale, indices) {shape: [V, H], block_size, dtype}`: rows of a table with blocks along them.

    Only the rows that are asked for are unpacked: those of `packed` are whole bytes, and H is a multiple of 8.
    """
    values = _tensor(kind.values)

    @script(domain, default_opset=op)
    def Gather(packed, scale, indices, shape: Sequence[int], block_size: int, dtype: int):
        dims = op.Constant(value_ints=shape)
        one, two = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
        codes = unpacking(op.Reshape(op.Gather(packed, indices), op.Constant(value_ints=[-1])))
        wanted = op.Concat(op.Shape(indices), op.Slice(dims, one, two), axis=0)
        units = op.Reshape(op.Gather(op.Constant(value=values), codes), wanted)
        length = op.Gather(dims, op.Constant(value_int=1))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        rows = op.Concat(op.Slice(dims, op.Constant(value_ints=[0]), one), one, axis=0)
        scales = op.Gather(op.Gather(op.Expand(op.Cast(scale, to=_FLOAT), rows), indices), group, axis=-1)
        return op.Cast(units * scales, to=dtype)

    return Gather


def gather_asymmetric(domain: Opset, kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`Gather<F>Asymmetric(packed, scale, zero_point, indices) {...}`: as `Gather<F>`, of value - zero point.

    Zero points are codes of the same format, one a byte, of the shape of the scales.
    """
    values = _tensor(kind.values)

    @script(domain, default_opset=op)
    def GatherAsymmetric(packed, scale, zero_point, indices, shape: Sequence[int], block_size: int, dtype: int):
        dims = op.Constant(value_ints=shape)
        table = op.Constant(value=values)
        one, two = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
        codes = unpacking(op.Reshape(op.Gather(packed, indices), op.Constant(value_ints=[-1])))
        wanted = op.Concat(op.Shape(indices), op.Slice(dims, one, two), axis=0)
        units = op.Reshape(op.Gather(table, codes), wanted)
        length = op.Gather(dims, op.Constant(value_int=1))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        rows = op.Concat(op.Slice(dims, op.Constant(value_ints=[0]), one), one, axis=0)
        scales = op.Gather(op.Gather(op.Expand(op.Cast(scale, to=_FLOAT), rows), indices), group, axis=-1)
        zero_codes = op.Cast(op.Gather(op.Expand(zero_point, rows), indices), to=_INT32)
        zeros = op.Gather(op.Gather(table, zero_codes), group, axis=-1)
        return op.Cast((units - zeros) * scales, to=dtype)

    return GatherAsymmetric


def matmul(domain: Opset, dequantizing: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>(x, packed, scale) {shape, block_size, dtype}`: x @ weight, the weight [K, N] with blocks along K."""

    @script(domain, default_opset=op)
    def MatMul(x, packed, scale, shape: Sequence[int], block_size: int, dtype: int):
        return op.MatMul(x, dequantizing(packed, scale, shape=shape, axis=0, block_size=block_size, dtype=dtype))

    return MatMul


def matmul_asymmetric(domain: Opset, dequantizing: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>Asymmetric(x, packed, scale, zero_point) {...}`: as `MatMul<F>`."""

    @script(domain, default_opset=op)
    def MatMulAsymmetric(x, packed, scale, zero_point, shape: Sequence[int], block_size: int, dtype: int):
        weight = dequantizing(packed, scale, zero_point, shape=shape, axis=0, block_size=block_size, dtype=dtype)
        return op.MatMul(x, weight)

    return MatMulAsymmetric


def linear(domain: Opset, multiplying: OnnxFunction) -> OnnxFunction:
    """`Linear<F>(x, packed, scale, bias) {...}`: `MatMul<F>` plus a bias [N]."""

    @script(domain, default_opset=op)
    def Linear(x, packed, scale, bias, shape: Sequence[int], block_size: int, dtype: int):
        return op.Add(multiplying(x, packed, scale, shape=shape, block_size=block_size, dtype=dtype), bias)

    return Linear


def linear_asymmetric(domain: Opset, multiplying: OnnxFunction) -> OnnxFunction:
    """`Linear<F>Asymmetric(x, packed, scale, zero_point, bias) {...}`: as `Linear<F>`."""

    @script(domain, default_opset=op)
    def LinearAsymmetric(x, packed, scale, zero_point, bias, shape: Sequence[int], block_size: int, dtype: int):
        product = multiplying(x, packed, scale, zero_point, shape=shape, block_size=block_size, dtype=dtype)
        return op.Add(product, bias)

    return LinearAsymmetric


def scale_from_codes(domain: Opset, values: npt.NDArray[np.float32]) -> OnnxFunction:
    """`Scale<F>(codes, tensor_scale)`: scales stored as one byte each, to float32, times one scale for the tensor."""
    table = _tensor(values)

    @script(domain, default_opset=op)
    def Scale(codes, tensor_scale):
        return op.Gather(op.Constant(value=table), op.Cast(codes, to=_INT32)) * tensor_scale

    return Scale


def add_outliers(domain: Opset) -> OnnxFunction:
    """`AddOutliers(weight, gap, value) {dtype}`: the weight plus a few numbers, each so far behind the one before."""
    zero = _tensor(np.float32(0))

    @script(domain, default_opset=op)
    def AddOutliers(weight, gap, value, dtype: int):
        shape = op.Shape(weight)
        zeros = op.Expand(op.Constant(value=zero), op.ReduceProd(shape, keepdims=1))
        places = op.CumSum(op.Cast(gap, to=_INT64), op.Constant(value_int=0))
        sparse = op.ScatterElements(zeros, places, op.Cast(value, to=_FLOAT))
        return op.Cast(op.Cast(weight, to=_FLOAT) + op.Reshape(sparse, shape), to=dtype)

    return AddOutliers


def hadamard(domain: Opset) -> OnnxFunction:
    """`Hadamard(x, left, right)`: rows of x seen as matrices [a, b], each `left @ row @ right`.

    With orthogonal matrices of a * b channels in all, it rotates: row @ kron(left.T, right).
    """

    @script(domain, default_opset=op)
    def Hadamard(x, left, right):
        start, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
        rows, columns = op.Slice(op.Shape(left), start, one), op.Slice(op.Shape(right), start, one)
        matrices = op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), rows, columns, axis=0))
        return op.Reshape(op.MatMul(left, op.MatMul(matrices, right)), op.Shape(x))

    return Hadamard
