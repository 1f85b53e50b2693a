"""Products of 8-bit activations with 8-bit weights, in the form that onnxruntime's integer kernels are fused from.

The rules are what onnxruntime 1.31.1 was seen to do on the CPU at its default optimization level; a test holds each
of them against the model that onnxruntime really makes:

- `MatMul` of any rank becomes MatMulIntegerToFloat, or DynamicQuantizeMatMul behind a DynamicQuantizeLinear.
- `Conv` becomes QLinearConv where its result is quantized too, with nothing between but Relu or Clip that cut off what
  the codes do not reach. Onnxruntime quantizes the bias itself.
- `Gemm`, and a `MatMul` of matrices with an Add behind it, become QGemm where the weight has a zero point, be it zero,
  and the bias is int32 with the product of both scales for its scale.
"""

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from onnxq.methods.solution import Solution
from onnxq.model.constants import fixed_tensor
from onnxq.model.operators import is_op, producer
from onnxq.model.products import is_plain_product
from onnxq.model.sites import Weight
from onnxq.passes.constants import add_constant
from onnxq.passes.edit import Editor, drop_unused
from onnxq.passes.sink import Sink

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)

Place = tuple[ir.Node, int]
"""A node, and which of its inputs."""


def reads_integers(weight: Weight) -> bool:
    """Whether an integer kernel can run each product with a weight, once the weight is 8-bit.

    The weight has one scale in all or one a channel.
    """
    return bool(weight.sites) and all(
        site.index == 1 and site.node.graph is weight.source.graph and _takes_integers(site.node)
        for site in weight.sites
    )


def integer_product(node: ir.Node) -> bool:
    """Whether a node runs in an integer kernel as it stands."""
    weight = producer(node, 1)
    if weight is None or not _dequantizes_bytes(weight) or not _takes_integers(node):
        return False
    bias = _bias_of(node)
    return not _is_gemm(node) or (len(weight.inputs) > 2 and (bias is None or fixed_tensor(_value(bias)) is None))


def with_zero_point(weight: Weight, solution: Solution) -> Solution:
    """The same solution, with zero points written out where QGemm wants to see them."""
    if solution.zero_point is not None or not any(_is_gemm(site.node) for site in weight.sites):
        return solution
    return dataclasses.replace(solution, zero_point=np.zeros(solution.scale.shape, np.uint8))


def quantize_biases(editor: Editor, weight: Weight, solution: Solution, sink: Sink) -> None:
    """Let the biases behind a weight be int32, where a kernel wants it.

    Args:
        editor: Of the model; the weight is quantized in it.
        weight: For which `reads_integers` held.
        solution: Of the weight.
        sink: Takes the new biases.
    """
    for site in weight.sites:
        place, source = _bias_of(site.node), producer(site.node, 0)
        scale = None if source is None else _constant_scale(source)
        if place is None or scale is None or (tensor := fixed_tensor(_value(place))) is None:
            continue
        scales = np.broadcast_to(scale * solution.scale.reshape(-1).astype(np.float32), tensor.shape.numpy())
        codes = np.rint(tensor.numpy().astype(np.float64) / scales)
        # Beyond int32 only where activations or weights are next to nothing; such a product stays float.
        if np.abs(codes).max(initial=0) <= np.iinfo(np.int32).max:
            _replace(editor, place, codes.astype(np.int32), scales, sink)


def _replace(editor: Editor, place: Place, codes: np.ndarray, scales: np.ndarray, sink: Sink) -> None:
    bias = _value(place)
    if bias is None:
        return
    constants = [
        add_constant(f"{bias.name}_{what}", array, bias, editor, sink)
        for what, array in (("quantized", codes), ("scale", scales))
    ]
    name = f"{bias.name}_dequantized"
    result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(codes.shape))
    reader, index = place
    reader.replace_input_with(index, editor.before(reader, ("", "DequantizeLinear"), constants, {"axis": 0}, result))
    drop_unused(bias)


def _takes_integers(node: ir.Node) -> bool:
    """Whether what surrounds a node lets onnxruntime run it with an 8-bit weight in an integer kernel."""
    source = producer(node, 0)
    if source is None or not _dequantizes_bytes(source):
        return False
    if is_op(node, "Conv"):
        return _constant_scale(source) is not None and _is_quantized_behind(node)
    if _is_gemm(node):
        return _constant_scale(source) is not None and _is_plain(node)
    return is_op(node, "MatMul")


def _dequantizes_bytes(node: ir.Node) -> bool:
    """Whether a node makes float32 of 8-bit integers."""
    if not is_op(node, "DequantizeLinear") or node.inputs[0] is None or node.inputs[1] is None:
        return False
    return node.inputs[0].dtype in (None, *_BYTES) and node.inputs[1].dtype in (None, ir.DataType.FLOAT)


def _constant_scale(source: ir.Node) -> np.float32 | None:
    """The scale of a DequantizeLinear, where it is one and does not change."""
    tensor = fixed_tensor(source.inputs[1])
    return None if tensor is None or tensor.size != 1 else np.float32(tensor.numpy().reshape(()))


def _is_gemm(node: ir.Node) -> bool:
    """Whether a node is a Gemm, or with the Add behind it becomes one in onnxruntime."""
    return is_op(node, "Gemm") or (is_op(node, "MatMul") and _bias_of(node) is not None)


def _bias_of(node: ir.Node) -> Place | None:
    """Which input of which node is the bias of a product of matrices; None where it has none."""
    if is_op(node, "Gemm"):
        return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    x, result = node.inputs[0], node.outputs[0]
    if not is_op(node, "MatMul") or x is None or x.shape is None or len(x.shape) != 2:
        return None
    if len(result.uses()) != 1 or result.is_graph_output():
        return None
    (use,) = result.uses()
    place = use.node, 1 - use.idx
    return place if is_op(use.node, "Add") and _is_vector(_value(place)) else None


def _value(place: Place) -> ir.Value | None:
    return place[0].inputs[place[1]]


def _is_plain(node: ir.Node) -> bool:
    """Whether a product of matrices is x @ w, or x @ w + bias; transB is folded into the weight."""
    bias = _bias_of(node)
    return is_plain_product(node) and (bias is None or _is_vector(_value(bias)))


def _is_vector(value: ir.Value | None) -> bool:
    """Whether a value is a constant float32 vector, or one that was quantized."""
    if value is None or value.shape is None or len(value.shape) != 1:
        return False
    return (fixed_tensor(value) is not None and value.dtype == ir.DataType.FLOAT) or is_op(
        value.producer(), "DequantizeLinear"
    )


def _is_quantized_behind(conv: ir.Node) -> bool:
    """Whether every reader quantizes the result of a convolution, or that of a Relu or Clip which changes nothing."""
    result, low, high = conv.outputs[0], -math.inf, math.inf
    while not result.is_graph_output() and len(result.uses()) == 1:
        (use,) = result.uses()
        if use.idx or not is_op(use.node, "Relu", "Clip"):
            break
        ends = _ends(use.node)
        low, high, result = max(low, ends[0]), min(high, ends[1]), use.node.outputs[0]
    users = [use.node for use in result.uses()]
    return bool(users) and not result.is_graph_output() and all(_lies_within(user, low, high) for user in users)


def _ends(node: ir.Node) -> tuple[float, float]:
    """Between which numbers a Relu or Clip puts its result; nowhere, where that is not constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    ends = [-math.inf, math.inf]
    for at, value in enumerate(node.inputs[1:3]):
        if value is not None:
            tensor = fixed_tensor(value)
            ends[at] = (math.inf, -math.inf)[at] if tensor is None else float(tensor.numpy().reshape(()))
    return ends[0], ends[1]


def _lies_within(node: ir.Node, low: float, high: float) -> bool:
    """Whether a node quantizes to codes that reach no farther than two numbers, so clipping there changes nothing."""
    if not is_op(node, "QuantizeLinear"):
        return False
    scale, zero = (fixed_tensor(value) for value in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in _BYTES:
        return low == -math.inf and high == math.inf
    step, point, limits = float(scale.numpy().item()), int(zero.numpy().item()), np.iinfo(zero.dtype.numpy())
    tolerance = float(np.finfo(np.float32).eps)
    return (limits.min - point) * step >= low - tolerance and (limits.max - point) * step <= high + tolerance
