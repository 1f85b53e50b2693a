"""Functions of the operators whose weights lie in the layout `tiled1` of the GPU kernels (formats/tiled.py)."""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset13 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

from onnxq.formats import Format
from onnxq.formats.tiled import low_plane_codes

_FLOAT = int(onnx.TensorProto.FLOAT)
_INT32 = int(onnx.TensorProto.INT32)


def untile(domain: Opset, kind: Format) -> OnnxFunction:
    """`Untile<F>(packed)`: units [N / 16, K / 128, bytes] to codes, int32 [K, N].

    A unit's low plane is [2, g, t, 4 steps, odd k, n < 8] bytes of two codes, its high plane [g, t, 4 double steps,
    odd k, n < 8] bytes of four pairs of bits. Both become [K / 128, 2, 4, upper 8 of 16 k, t, odd k, N / 16, n < 8, g].
    """
    nibbles = numpy_helper.from_array(low_plane_codes(kind).astype(np.int32))
    byte = np.arange(256, dtype=np.int32)
    pairs = [byte >> 4 & 1 | byte >> 6 & 2, byte & 1 | byte >> 2 & 2, byte >> 2 & 1 | byte >> 4 & 2, byte >> 6 & 1]
    own = numpy_helper.from_array(np.stack(pairs, 1) * 16)
    # The upper bit of the fourth pair stands in the next byte of its word.
    carried = numpy_helper.from_array(np.stack([0 * byte, 0 * byte, 0 * byte, byte & 2], 1) * 16)
    following, backwards = numpy_helper.from_array(np.array([1, 2, 3, 0])), numpy_helper.from_array(np.array([1, 0]))

    @script(domain, default_opset=op)
    def Untile4(packed):
        units = op.Slice(op.Shape(packed), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        bytes_ = op.Reshape(packed, op.Concat(units, op.Constant(value_ints=[2, 8, 4, 4, 2, 2]), axis=0))
        codes = op.Gather(op.Constant(value=nibbles), op.Cast(bytes_, to=_INT32))
        steps = op.Transpose(codes, perm=[1, 2, 5, 8, 4, 6, 0, 7, 3])
        natural = op.Gather(steps, op.Constant(value=backwards), axis=7)
        dims = op.Mul(units, op.Constant(value_ints=[16, 128]))
        return op.Reshape(natural, op.Gather(dims, op.Constant(value=backwards)))

    @script(domain, default_opset=op)
    def Untile6(packed):
        units = op.Slice(op.Shape(packed), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        last = op.Constant(value_ints=[2])
        below = op.Slice(packed, op.Constant(value_ints=[512]), op.Constant(value_ints=[1536]), last)
        bytes_ = op.Reshape(below, op.Concat(units, op.Constant(value_ints=[2, 8, 4, 4, 2, 2]), axis=0))
        low = op.Gather(op.Constant(value=nibbles), op.Cast(bytes_, to=_INT32))
        low_steps = op.Transpose(low, perm=[1, 2, 5, 8, 4, 6, 0, 7, 3])
        above = op.Slice(packed, op.Constant(value_ints=[0]), op.Constant(value_ints=[512]), last)
        words = op.Reshape(above, op.Concat(units, op.Constant(value_ints=[8, 4, 4, 4]), axis=0))
        high_bytes = op.Cast(words, to=_INT32)
        next_bytes = op.Gather(high_bytes, op.Constant(value=following), axis=5)
        there = op.Gather(op.Constant(value=own), high_bytes)
        pairs_ = there + op.Gather(op.Constant(value=carried), next_bytes)
        high = op.Reshape(pairs_, op.Concat(units, op.Constant(value_ints=[8, 4, 4, 2, 2, 2, 2]), axis=0))
        high_steps = op.Reshape(op.Transpose(high, perm=[1, 4, 7, 8, 3, 5, 0, 6, 2]), op.Shape(low_steps))
        natural = op.Gather(op.Add(low_steps, high_steps), op.Constant(value=backwards), axis=7)
        dims = op.Mul(units, op.Constant(value_ints=[16, 128]))
        return op.Reshape(natural, op.Gather(dims, op.Constant(value=backwards)))

    return Untile6 if kind.bits == 6 else Untile4


def matmul_tiled(domain: Opset, kind: Format, untiling: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>Tiled(x, packed, scale) {shape, block_size, dtype, layout}`: as `MatMul<F>`; `layout` is 1."""
    values = numpy_helper.from_array(kind.values)

    @script(domain, default_opset=op)
    def MatMulTiled(x, packed, scale, shape: Sequence[int], block_size: int, dtype: int, layout: int):
        dims = op.Constant(value_ints=shape)
        units = op.Gather(op.Constant(value=values), op.Reshape(untiling(packed), dims))
        length = op.Gather(dims, op.Constant(value_int=0))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=0)
        return op.MatMul(x, op.Cast(units * scales, to=dtype))

    return MatMulTiled


def matmul_tiled_asymmetric(domain: Opset, kind: Format, untiling: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>TiledAsymmetric(x, packed, scale, zero_point) {...}`: as `MatMul<F>Tiled`, of value - zero point.

    Zero points are codes of the same format, one a byte, in the shape of the scales.
    """
    values = numpy_helper.from_array(kind.values)

    @script(domain, default_opset=op)
    def MatMulTiledAsymmetric(
        x, packed, scale, zero_point, shape: Sequence[int], block_size: int, dtype: int, layout: int
    ):
        dims = op.Constant(value_ints=shape)
        table = op.Constant(value=values)
        units = op.Gather(table, op.Reshape(untiling(packed), dims))
        length = op.Gather(dims, op.Constant(value_int=0))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=0)
        zeros = op.Gather(op.Gather(table, op.Cast(zero_point, to=_INT32)), group, axis=0)
        return op.MatMul(x, op.Cast((units - zeros) * scales, to=dtype))

    return MatMulTiledAsymmetric


def linear_tiled(domain: Opset, multiplying: OnnxFunction) -> OnnxFunction:
    """`Linear<F>Tiled(x, packed, scale, bias) {...}`: `MatMul<F>Tiled` plus a bias [N]."""

    @script(domain, default_opset=op)
    def LinearTiled(x, packed, scale, bias, shape: Sequence[int], block_size: int, dtype: int, layout: int):
        product = multiplying(x, packed, scale, shape=shape, block_size=block_size, dtype=dtype, layout=layout)
        return op.Add(product, bias)

    return LinearTiled


def linear_tiled_asymmetric(domain: Opset, multiplying: OnnxFunction) -> OnnxFunction:
    """`Linear<F>TiledAsymmetric(x, packed, scale, zero_point, bias) {...}`: as `Linear<F>Tiled`."""

    @script(domain, default_opset=op)
    def LinearTiledAsymmetric(
        x, packed, scale, zero_point, bias, shape: Sequence[int], block_size: int, dtype: int, layout: int
    ):
        product = multiplying(
            x, packed, scale, zero_point, shape=shape, block_size=block_size, dtype=dtype, layout=layout
        )
        return op.Add(product, bias)

    return LinearTiledAsymmetric


def swiglu(domain: Opset) -> OnnxFunction:
    """`SwiGLU(product) {dtype}`: silu(gate) * up of columns that are gate and up in turn, 16 each."""

    @script(domain, default_opset=op)
    def SwiGLU(product, dtype: int):
        dims, minus_one = op.Shape(product), op.Constant(value_ints=[-1])
        leading = op.Slice(dims, op.Constant(value_ints=[0]), minus_one)
        columns = op.Gather(dims, minus_one)
        pairs = op.Concat(leading, columns / op.Constant(value_int=32), op.Constant(value_ints=[2, 16]), axis=0)
        strips = op.Cast(op.Reshape(product, pairs), to=_FLOAT)
        gate = op.Gather(strips, op.Constant(value_int=0), axis=-2)
        up = op.Gather(strips, op.Constant(value_int=1), axis=-2)
        result = op.Cast(gate * op.Sigmoid(gate) * up, to=dtype)
        return op.Reshape(result, op.Concat(leading, columns / op.Constant(value_int=2), axis=0))

    return SwiGLU


def swiglu_tiled(domain: Opset, multiplying: OnnxFunction, gating: OnnxFunction) -> OnnxFunction:
    """`SwiGLU<F>Tiled(x, packed, scale) {...}`: `SwiGLU` of `MatMul<F>Tiled`."""

    @script(domain, default_opset=op)
    def SwiGLUTiled(x, packed, scale, shape: Sequence[int], block_size: int, dtype: int, layout: int):
        product = multiplying(x, packed, scale, shape=shape, block_size=block_size, dtype=dtype, layout=layout)
        return gating(product, dtype=dtype)

    return SwiGLUTiled


def swiglu_tiled_asymmetric(domain: Opset, multiplying: OnnxFunction, gating: OnnxFunction) -> OnnxFunction:
    """`SwiGLU<F>TiledAsymmetric(x, packed, scale, zero_point) {...}`: as `SwiGLU<F>Tiled`."""

    @script(domain, default_opset=op)
    def SwiGLUTiledAsymmetric(
        x, packed, scale, zero_point, shape: Sequence[int], block_size: int, dtype: int, layout: int
    ):
        product = multiplying(
            x, packed, scale, zero_point, shape=shape, block_size=block_size, dtype=dtype, layout=layout
        )
        return gating(product, dtype=dtype)

    return SwiGLUTiledAsymmetric
