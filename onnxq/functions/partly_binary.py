"""Function of the operator whose weights are binary, but for a few in INT8."""

# The bodies are onnxscript, a language of its own that only looks like Python to a type checker.
# mypy: ignore-errors

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset13 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

_FLOAT = int(onnx.TensorProto.FLOAT)
_BOOL = int(onnx.TensorProto.BOOL)


def partly_binary(domain: Opset, unpacking: OnnxFunction) -> OnnxFunction:
    """`PartlyBinary(sign, mask, scale, mean, salient, salient_scale) {shape, axis, block_size, dtype}`.

    Where the mask has a one, the next number of `salient` times its scale; elsewhere the next bit of `sign`, which adds
    the scale to the mean or takes it away. Scales and means are those at i // block_size along `axis`.
    """
    one, two = (numpy_helper.from_array(np.int32(each)) for each in (1, 2))
    none, last = (numpy_helper.from_array(np.array(each, np.int32)) for each in (0, 2**31 - 1))

    @script(domain, default_opset=op)
    def PartlyBinary(
        sign, mask, scale, mean, salient, salient_scale, shape: Sequence[int], axis: int, block_size: int, dtype: int
    ):
        dims = op.Constant(value_ints=shape)
        count = op.ReduceProd(dims, keepdims=1)
        marks = op.Slice(unpacking(mask), op.Constant(value_ints=[0]), count)
        # How many salient ones there are up to each place, and how many others.
        seen = op.CumSum(marks, op.Constant(value_int=0))
        others = op.CumSum(op.Constant(value=one) - marks, op.Constant(value_int=0))
        own = op.Clip(seen - op.Constant(value=one), op.Constant(value=none), op.Constant(value=last))
        theirs = op.Clip(others - op.Constant(value=one), op.Constant(value=none), op.Constant(value=last))
        signs = op.Gather(unpacking(sign), theirs) * op.Constant(value=two) - op.Constant(value=one)
        length = op.Gather(dims, op.Constant(value_int=axis))
        group = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1)) / op.Constant(value_int=block_size)
        scales = op.Gather(op.Cast(scale, to=_FLOAT), group, axis=axis)
        means = op.Gather(op.Cast(mean, to=_FLOAT), group, axis=axis)
        binary = op.Reshape(op.Cast(signs, to=_FLOAT), dims) * scales + means
        integers = op.Reshape(op.Cast(op.Gather(salient, own), to=_FLOAT), dims)
        wide = integers * op.Cast(salient_scale, to=_FLOAT)
        chosen = op.Reshape(op.Cast(marks, to=_BOOL), dims)
        return op.Cast(op.Where(chosen, wide, binary), to=dtype)

    return PartlyBinary
