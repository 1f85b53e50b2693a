"""Functions of the operators whose weights lie in the layout `tiled2` of the GPU kernels (formats/tiled.py)."""

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
from onnxq.formats.tiled import PARTS, TURNS, codes_of_bytes, codes_of_half_words

_FLOAT = int(onnx.TensorProto.FLOAT)
_INT32 = int(onnx.TensorProto.INT32)
_INT64 = int(onnx.TensorProto.INT64)


def untile(domain: Opset, kind: Format) -> OnnxFunction:
    """`Untile<F>(packed)`: units [N / 16, ceil(K / 128), bytes] to codes, int32 [K in whole units, N]."""
    return _untile_words(domain, kind) if kind.bits == 6 else _untile_bytes(domain, kind)


def _untile_bytes(domain: Opset, kind: Format) -> OnnxFunction:
    """A unit of four-bit codes is [2, g, t, 4 steps, odd k, n < 8] bytes of two."""
    both = numpy_helper.from_array(codes_of_bytes(kind).astype(np.int32))
    backwards = numpy_helper.from_array(np.array([1, 0]))

    @script(domain, default_opset=op)
    def Untile4(packed):
        units = op.Slice(op.Shape(packed), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        bytes_ = op.Reshape(packed, op.Concat(units, op.Constant(value_ints=[2, 8, 4, 4, 2, 2]), axis=0))
        codes = op.Gather(op.Constant(value=both), op.Cast(bytes_, to=_INT32))
        steps = op.Transpose(codes, perm=[1, 2, 5, 8, 4, 6, 0, 7, 3])
        natural = op.Gather(steps, op.Constant(value=backwards), axis=7)
        dims = op.Mul(units, op.Constant(value_ints=[16, 128]))
        return op.Reshape(natural, op.Gather(dims, op.Constant(value=backwards)))

    return Untile4


def _untile_words(domain: Opset, kind: Format) -> OnnxFunction:
    """A unit of six-bit codes is [3 words, g, t, 4 double steps, 4] bytes, from which the fourth word comes together.

    All four are then [step, upper half of its k, g, t, 4 double steps, odd k, n < 8] bytes of a code each, but for a
    bit or two in the other byte of a half word.
    """
    byte = np.arange(256, dtype=np.int32)
    # Parts of the fourth word that stand in the byte they are for, and, turned out of it, in the one before.
    turned = [byte << 32 - turn if turn > 8 else byte >> turn for turn in TURNS]
    own = [bits & part for bits, part in zip(turned, PARTS[kind.name], strict=True)]
    first, second, third = (numpy_helper.from_array(each) for each in own)
    carried = numpy_helper.from_array(turned[2] >> 8 & PARTS[kind.name][2])
    previous, backwards = numpy_helper.from_array(np.array([3, 0, 1, 2])), numpy_helper.from_array(np.array([1, 0]))
    # By upper byte and two bits of the lower, and by lower byte and one of the upper.
    codes_, two, one = codes_of_half_words(kind.name).astype(np.int32), np.arange(1024), np.arange(512)
    upper = numpy_helper.from_array(codes_[(two >> 2) << 8 | (two & 3) << 6, 0])
    lower = numpy_helper.from_array(codes_[(one & 1) << 15 | one >> 1, 1])
    int2, int4, int64, int128 = (numpy_helper.from_array(np.array(number, np.int32)) for number in (2, 4, 64, 128))

    @script(domain, default_opset=op)
    def Untile6(packed):
        units = op.Slice(op.Shape(packed), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        bytes_ = op.Reshape(packed, op.Concat(units, op.Constant(value_ints=[3, 8, 4, 4, 4]), axis=0))
        words = op.Cast(bytes_, to=_INT32)
        word0 = op.Gather(words, op.Constant(value_ints=[0]), axis=2)
        word1 = op.Gather(words, op.Constant(value_ints=[1]), axis=2)
        word2 = op.Gather(words, op.Constant(value_ints=[2]), axis=2)
        early = op.Gather(op.Constant(value=first), word0) + op.Gather(op.Constant(value=second), word1)
        there = op.Gather(op.Constant(value=third), word2)
        over = op.Gather(op.Constant(value=carried), op.Gather(word2, op.Constant(value=previous), axis=6))
        four = op.Concat(words, early + there + over, axis=2)
        halves = op.Reshape(four, op.Concat(units, op.Constant(value_ints=[2, 2, 8, 4, 4, 2, 2]), axis=0))
        low = op.Gather(halves, op.Constant(value_ints=[0]), axis=8)
        high = op.Gather(halves, op.Constant(value_ints=[1]), axis=8)
        row = op.Gather(op.Constant(value=upper), high * op.Constant(value=int4) + low / op.Constant(value=int64))
        eighth = op.Gather(op.Constant(value=lower), low * op.Constant(value=int2) + high / op.Constant(value=int128))
        codes = op.Concat(row, eighth, axis=8)
        natural = op.Transpose(codes, perm=[1, 6, 2, 3, 5, 7, 0, 8, 4])
        dims = op.Mul(units, op.Constant(value_ints=[16, 128]))
        return op.Reshape(natural, op.Gather(dims, op.Constant(value=backwards)))

    return Untile6


def matmul_tiled(domain: Opset, kind: Format, untiling: OnnxFunction) -> OnnxFunction:
    """`MatMul<F>Tiled(x, packed, scale) {shape, block_size, dtype, layout}`: as `MatMul<F>`; `layout` is 2."""
    values = numpy_helper.from_array(kind.values)

    @script(domain, default_opset=op)
    def MatMulTiled(x, packed, scale, shape: Sequence[int], block_size: int, dtype: int, layout: int):
        dims = op.Constant(value_ints=shape)
        codes = op.Slice(untiling(packed), op.Constant(value_ints=[0, 0]), dims)
        units = op.Gather(op.Constant(value=values), codes)
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
        units = op.Gather(table, op.Slice(untiling(packed), op.Constant(value_ints=[0, 0]), dims))
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


def gather_tiled(domain: Opset, kind: Format, untiling: OnnxFunction) -> OnnxFunction:
    """`Gather<F>Tiled(packed, scale, indices) {shape: [K, N], block_size, dtype, layout}`: columns, as rows of floats.

    Only the strips of 16 columns that they stand in are unpacked. `packed` and `scale` may have more columns than N,
    which fill up the last strip: a product may read the same.
    """
    values = numpy_helper.from_array(kind.values)

    @script(domain, default_opset=op)
    def GatherTiled(packed, scale, indices, shape: Sequence[int], block_size: int, dtype: int, layout: int):
        dims = op.Constant(value_ints=shape)
        zero, one, all_ = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
        wanted, strip = op.Cast(op.Reshape(indices, all_), to=_INT64), op.Constant(value_ints=[16])
        # Counted from the end where they are negative. One more is unpacked: a Reshape takes a size of 0 for another.
        counted = op.Where(wanted < zero, wanted + op.Slice(dims, one, op.Constant(value_ints=[2])), wanted)
        columns = op.Concat(counted, zero, axis=0)
        codes = untiling(op.Gather(packed, columns / strip))
        places = op.Range(op.Constant(value_int=0), op.Size(columns), op.Constant(value_int=1))
        rows = op.Transpose(op.Gather(codes, places * strip + op.Mod(columns, strip), axis=1), perm=[1, 0])
        length = op.Slice(dims, zero, one)
        units = op.Gather(op.Constant(value=values), op.Slice(rows, zero, length, one))
        k = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
        group = k / op.Constant(value_int=block_size)
        theirs = op.Transpose(op.Cast(op.Gather(scale, columns, axis=1), to=_FLOAT), perm=[1, 0])
        scales = op.Gather(theirs, group, axis=1)
        result = op.Slice(units * scales, zero, op.Shape(wanted), zero)
        return op.Reshape(op.Cast(result, to=dtype), op.Concat(op.Shape(indices), length, axis=0))

    return GatherTiled


def gather_tiled_asymmetric(domain: Opset, kind: Format, untiling: OnnxFunction) -> OnnxFunction:
    """`Gather<F>TiledAsymmetric(packed, scale, zero_point, indices) {...}`: as `Gather<F>Tiled`, of value - zero point.

    Zero points are codes of the same format, one a byte, in the shape of the scales.
    """
    values = numpy_helper.from_array(kind.values)

    @script(domain, default_opset=op)
    def GatherTiledAsymmetric(
        packed, scale, zero_point, indices, shape: Sequence[int], block_size: int, dtype: int, layout: int
    ):
        dims, table = op.Constant(value_ints=shape), op.Constant(value=values)
        zero, one, all_ = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
        wanted, strip = op.Cast(op.Reshape(indices, all_), to=_INT64), op.Constant(value_ints=[16])
        counted = op.Where(wanted < zero, wanted + op.Slice(dims, one, op.Constant(value_ints=[2])), wanted)
        columns = op.Concat(counted, zero, axis=0)
        codes = untiling(op.Gather(packed, columns / strip))
        places = op.Range(op.Constant(value_int=0), op.Size(columns), op.Constant(value_int=1))
        rows = op.Transpose(op.Gather(codes, places * strip + op.Mod(columns, strip), axis=1), perm=[1, 0])
        length = op.Slice(dims, zero, one)
        units = op.Gather(table, op.Slice(rows, zero, length, one))
        k = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
        group = k / op.Constant(value_int=block_size)
        theirs = op.Transpose(op.Cast(op.Gather(scale, columns, axis=1), to=_FLOAT), perm=[1, 0])
        scales = op.Gather(theirs, group, axis=1)
        zero_codes = op.Cast(op.Gather(zero_point, columns, axis=1), to=_INT32)
        zeros = op.Gather(op.Transpose(op.Gather(table, zero_codes), perm=[1, 0]), group, axis=1)
        result = op.Slice((units - zeros) * scales, zero, op.Shape(wanted), zero)
        return op.Reshape(op.Cast(result, to=dtype), op.Concat(op.Shape(indices), length, axis=0))

    return GatherTiledAsymmetric


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
