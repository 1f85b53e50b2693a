"""Functions of the operators whose format has no values of its own: their table is an input."""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

from collections.abc import Sequence

import onnx
from onnxscript import opset13 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import Format

_FLOAT = int(onnx.TensorProto.FLOAT)


def dequantize(domain: Opset, _kind: Format, unpacking: OnnxFunction) -> OnnxFunction:
    """`Dequantize<F>(packed, scale, table) {shape, axis, block_size, dtype}`: a code is a position in the table.

    Element i along `axis` of the result is its value times the scale at i // block_size along the same axis.
    """

    @script(domain, default_opset=op)
    def Dequantize(packed, scale, table, shape: Sequence[int], axis: int, block_size: int, dtype: int):
        dims = op.Constant(value_ints=shape)
        count = op.ReduceProd(dims, keepdims=1)
        codes = op.Slice(unpacking(packed), op.Constant(value_ints=[0]), count)
        units = op.Reshape(op.Gather(table, codes), dims)
        length = op.Gather(dims, op.Constant(value_int=axis))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=axis)
        return op.Cast(units * scales, to=dtype)

    return Dequantize


def matmul(domain: Opset, dequantizing: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>(x, packed, scale, table) {shape, block_size, dtype}`: x @ weight, [K, N], blocks along K."""

    @script(domain, default_opset=op)
    def MatMul(x, packed, scale, table, shape: Sequence[int], block_size: int, dtype: int):
        weight = dequantizing(packed, scale, table, shape=shape, axis=0, block_size=block_size, dtype=dtype)
        return op.MatMul(x, weight)

    return MatMul


def linear(domain: Opset, multiplying: OnnxFunction) -> OnnxFunction:
    """`Linear<F>(x, packed, scale, table, bias) {...}`: `MatMul<F>` plus a bias [N]."""

    @script(domain, default_opset=op)
    def Linear(x, packed, scale, table, bias, shape: Sequence[int], block_size: int, dtype: int):
        return op.Add(multiplying(x, packed, scale, table, shape=shape, block_size=block_size, dtype=dtype), bias)

    return Linear
