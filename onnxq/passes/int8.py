"""FP6 E2M3 and FP4 E2M1 weights as int8 for `MatMulNBits`, without loss.

Every E2M3 value is a multiple of 1/8 up to 7.5, every E2M1 value a multiple of 1/2 up to 6: eight times, or two times,
the value is an integer that int8 holds, and the scale takes the factor. onnxruntime runs such weights with its own
8-bit kernel, where the library of onnxq cannot be installed.
"""

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxq.formats import Integer
from onnxq.methods.solution import Solution
from onnxq.model.operators import MICROSOFT
from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor, describe
from onnxq.passes.fusion import BLOCK_SIZES
from onnxq.passes.insert import Shelf
from onnxq.passes.sink import Sink
from onnxq.passes.target import LOSSLESS_INT8

# Activations rounded to int8: with 8-bit weights onnxruntime has no fast kernel at another level.
ACCURACY_LEVEL = 4


def as_int8(solution: Solution, dtype: ir.DataType) -> Solution | None:
    """The same weights in int8 with scales of type `dtype`, or None where that would change one of them."""
    factor = LOSSLESS_INT8.get(str(solution.format.onnx_type))
    if factor is None or dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    # As every target decodes: the product of two levels of scales is rounded to float32.
    level = np.float32(1) if solution.tensor_scale is None else solution.tensor_scale
    exact = solution.scale.astype(np.float32) * level
    scale = (exact / np.float32(factor)).astype(dtype.numpy())
    if (scale.astype(np.float32) * np.float32(factor) != exact).any() or (
        scale < np.finfo(scale.dtype).smallest_normal
    ).any():
        return None
    int8 = Integer(8)
    integers = (solution.format.values * factor).astype(np.int8).view(np.uint8)
    return dataclasses.replace(
        solution, format=int8, codes=integers.take(solution.codes), scale=scale, tensor_scale=None
    )


def replace_matmuls(editor: Editor, weight: Weight, solution: Solution, sink: Sink, text: str) -> int | None:
    """Turn the products with a weight into `MatMulNBits(bits=8)`.

    Args:
        editor: Of the model.
        weight: For which `fusion.is_matmul_weight` holds.
        solution: From `as_int8`.
        sink: Takes the bytes.
        text: What a graph viewer shows about them.

    Returns:
        Bytes of codes and scales, or None where the operator has no block size for the weight's groups, or filled up to
        whole blocks the weight would be larger than it was.
    """
    _, k, n = solution.codes.shape
    group = k if solution.block is None else solution.block
    block = next((each for each in reversed(BLOCK_SIZES) if group % each == 0 or group >= k), None)
    if block is None:
        return None
    while block > 16 and block >= 2 * k:
        block //= 2
    blocks = -(-k // block)
    if n * blocks * (block + solution.scale.itemsize) >= weight.size_bytes:
        return None
    # Unsigned codes with 128 for zero, each column padded to whole blocks.
    codes = np.full((n, blocks * block), 128, np.uint8)
    codes[:, :k] = solution.codes[0].T + np.uint8(128)
    rows = np.zeros(blocks, np.intp) if solution.block is None else np.arange(blocks) * block // group
    scale = np.broadcast_to(solution.scale[0].T, (n, solution.scale.shape[1]))[:, rows]
    shelf = Shelf(editor, weight, sink)
    values = [
        shelf.add("quantized", ir.DataType.UINT8, codes.reshape(n, blocks, block).shape, codes),
        shelf.add("scale", ir.DataType.from_numpy(scale.dtype), (n, blocks), scale),
    ]
    attributes = {"K": k, "N": n, "bits": 8, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    for site in weight.sites:
        describe(site.node, text)
        editor.replace(site.node, (MICROSOFT, "MatMulNBits"), [site.node.inputs[0], *values], attributes)
    return shelf.size_bytes
