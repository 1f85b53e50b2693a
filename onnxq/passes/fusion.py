"""When a weight and the matmul behind it become one node: `MatMulNBits`, or a product in one of onnxq's GPU kernels.

The rules for `MatMulNBits` are what onnxruntime 1.31.1 was seen to do on the CPU at its default optimization level; a
test holds each of them against the model that onnxruntime really makes.
"""

import onnx_ir as ir

from onnxq.formats import Format
from onnxq.formats.tiled import fits_tiled
from onnxq.model.constants import fixed_tensor
from onnxq.model.operators import is_op, is_set, producer
from onnxq.model.products import is_plain_product
from onnxq.model.sites import Weight

_BITS = {
    ir.DataType.INT2: 2,
    ir.DataType.UINT2: 2,
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
}
# The sizes of a block that the operator takes (onnxruntime 1.31, com.microsoft.MatMulNBits).
BLOCK_SIZES = (16, 32, 64, 128, 256)
# Blocks that the GPU kernels take are these, whole units of the layout, or the whole column.
_TILED_BLOCK_SIZES, _TILED_UNIT = (16, 32, 64), 128


def fused_bits(node: ir.Node) -> int | None:
    """The bits of the `MatMulNBits` that a MatMul or Gemm becomes, or None where it stays what it is."""
    if not is_op(node, "MatMul", "Gemm"):
        return None
    dequantize = producer(node, 1)
    if not is_op(dequantize, "DequantizeLinear") or dequantize.graph is not node.graph:
        return None
    weight = fixed_tensor(dequantize.inputs[0])
    if weight is None or len(weight.shape) != 2 or fixed_tensor(dequantize.inputs[1]) is None:
        return None
    # A second reader of the weight, the scale or the dequantized result stops the fusion; one of the zero point not.
    read = (*dequantize.inputs[:2], dequantize.outputs[0], node.inputs[1])
    if any(value is None or len(value.uses()) != 1 for value in read) or dequantize.outputs[0].is_graph_output():
        return None
    if not _blocks_along_k(dequantize) or not _takes_fused_weight(node):
        return None
    return _BITS.get(weight.dtype)


def will_fuse(weight: Weight, block: int | None, bits: int) -> bool:
    """Whether the reader of a weight becomes a `MatMulNBits`, once the weight is integers under a `DequantizeLinear`.

    Args:
        weight: Not quantized yet.
        block: Neighbours along K that share a scale; None for one scale in all.
        bits: Of the integers.
    """
    if len(weight.sites) != 1 or len(weight.shape) != 2:
        return False
    site = weight.sites[0]
    if not is_op(site.node, "MatMul", "Gemm") or site.index != 1 or site.steps != weight.steps:
        return False
    # A DequantizeLinear in a subgraph whose weight stands in the graph around it makes onnxruntime refuse the model.
    if site.node.graph is not weight.source.graph or any(node.graph is not site.node.graph for node in site.chain):
        return False
    # Rows of two-bit weights that do not fill whole bytes are fused to wrong numbers.
    if bits == 2 and weight.shape[1] % 4:
        return False
    whole = block is None or block == weight.shape[0]
    return (whole or block in BLOCK_SIZES) and _takes_fused_weight(site.node, transposed=site.transposed_by is not None)


def will_tile(weight: Weight, kind: Format, block: int | None) -> bool:
    """Whether all readers of a weight are products x @ w that onnxq's GPU kernels can compute.

    Args:
        weight: Not quantized yet.
        kind: Format of its codes.
        block: Neighbours along K that share a scale; None for one scale in all.
    """
    if len(weight.shape) != 2 or not fits_tiled(*weight.shape, kind):
        return False
    if block is not None and block < weight.shape[0] and block not in _TILED_BLOCK_SIZES and block % _TILED_UNIT:
        return False
    return all(
        site.index == 1
        and site.steps == weight.steps
        and is_op(site.node, "MatMul", "Gemm")
        and is_plain_product(site.node)
        for site in weight.sites
    )


def is_matmul_weight(weight: Weight) -> bool:
    """Whether all readers are plain products x @ w with a weight [K, N]."""
    return len(weight.shape) == 2 and all(
        is_op(site.node, "MatMul") and site.index == 1 and site.steps == weight.steps for site in weight.sites
    )


def _takes_fused_weight(node: ir.Node, *, transposed: bool = False) -> bool:
    """Whether what surrounds a MatMul or Gemm lets onnxruntime fuse its weight.

    Quantized activations on either side are left to the integer kernels. `transposed`: transB is about to be folded.
    """
    if is_op(producer(node, 0), "DequantizeLinear") or any(is_op(user, "QuantizeLinear") for user in _users(node)):
        return False
    return _is_fusible_product(node, transposed=transposed) and not _before_clip(node)


def _users(node: ir.Node) -> list[ir.Node]:
    return [use.node for use in node.outputs[0].uses()]


def _blocks_along_k(dequantize: ir.Node) -> bool:
    """Scales of a [K, N] weight: blocks along K, or one a column, or one for all. A negative axis is not recognised."""
    scale = dequantize.inputs[1]
    shape = fixed_tensor(scale)
    axis = dequantize.attributes.get_int("axis", 1)
    block = dequantize.attributes.get_int("block_size", 0)
    if block:
        return axis == 0 and block in BLOCK_SIZES
    return shape is not None and (len(shape.shape) == 0 or axis == 1)


def _is_fusible_product(node: ir.Node, *, transposed: bool) -> bool:
    """Whether the node is x @ w, or x @ w plus a bias of one dimension."""
    if is_op(node, "MatMul"):
        return not _becomes_gemm_with_wide_bias(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return is_plain_product(node) and (transposed or is_set(node, "transB") is False) and _rank(bias) in (None, 0, 1)


def _gemm_end(node: ir.Node) -> ir.Node:
    """The Add behind a MatMul of [M, K], as onnxruntime makes one Gemm of the two first; else the node itself."""
    users = _users(node)
    if is_op(node, "MatMul") and _rank(node.inputs[0]) == 2 and len(users) == 1 and is_op(users[0], "Add"):
        return users[0]
    return node


def _becomes_gemm_with_wide_bias(node: ir.Node) -> bool:
    """Whether the Add behind a MatMul of [M, K] adds [1, N] or [M, N]: such a bias is not fused."""
    x, end = node.inputs[0], _gemm_end(node)
    if end is node or x is None or x.shape is None:
        return False
    others = [value for value in end.inputs if value is not None and value is not node.outputs[0]]
    return any(_rank(o) == 2 and o.shape is not None and o.shape[0] in (1, x.shape[0]) for o in others)


def _before_clip(node: ir.Node) -> bool:
    """Whether a Relu or Clip with one reader follows, which onnxruntime takes for a part of a quantized pattern."""
    users = _users(_gemm_end(node))
    while len(users) == 1 and is_op(users[0], "Identity"):
        users = _users(users[0])
    return len(users) == 1 and is_op(users[0], "Relu", "Clip") and len(_users(users[0])) == 1


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
