"""Operators that read a weight: which input it is, and what its axes mean.

An operator is known by its domain and type, never by its type alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import onnx_ir as ir

DOMAIN = "onnxq"
"""Of the operators whose meaning stands in `onnxq.functions`."""
MICROSOFT = "com.microsoft"
"""Of onnxruntime's own operators."""


@dataclass(frozen=True)
class Layout:
    """What the axes of a weight mean to the operator that reads it.

    Attributes:
        reduction: The axis summed over; groups of weights that share a scale run along it.
        channel: The axis of output channels.
        flatten: The sum runs over all axes but the first (convolutions): the weight is a matrix [channel, rest].
    """

    reduction: int
    channel: int
    flatten: bool = False


@dataclass(frozen=True)
class Operand:
    """An input of an operator that may be a weight."""

    index: int
    layout: Callable[[ir.Node, int], Layout | None]
    """(node, rank) -> layout, or None where a weight of that rank is no weight matrix."""
    transposed_by: str | None = None
    """Attribute that makes the operator transpose it first; the layout is that of the transposed weight."""
    embedding: bool = False


def is_set(node: ir.Node, name: str) -> bool | None:
    """Whether a node has an attribute of that name that is not zero; None where a function's caller decides."""
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.is_ref():
        return None
    return attribute is not None and bool(attribute.value)


def _matmul_right(_node: ir.Node, rank: int) -> Layout | None:
    return Layout(rank - 2, rank - 1) if rank >= 2 else None


def _matmul_left(_node: ir.Node, rank: int) -> Layout | None:
    return Layout(rank - 1, rank - 2) if rank >= 2 else None


def _unless_batch_turned(plain: Callable[[ir.Node, int], Layout | None]) -> Callable[[ir.Node, int], Layout | None]:
    """FusedMatMul can also move its batch axes, which no weight of a model was seen to need."""

    def layout(node: ir.Node, rank: int) -> Layout | None:
        straight = is_set(node, "transBatchA") is False and is_set(node, "transBatchB") is False
        return plain(node, rank) if straight else None

    return layout


def _conv(_node: ir.Node, rank: int) -> Layout | None:
    return Layout(1, 0, flatten=True) if rank >= 3 else None


def _conv_transpose(_node: ir.Node, rank: int) -> Layout | None:
    return Layout(0, 1) if rank >= 3 else None


def _table(node: ir.Node, rank: int) -> Layout | None:
    """Rows of a table are looked up; groups run along a row."""
    axis = node.attributes.get("axis")
    return Layout(1, 0) if rank == 2 and (axis is None or axis.value == 0) else None


_GEMM = (Operand(1, _matmul_right, "transB"), Operand(0, _matmul_left, "transA"))
_FUSED_MATMUL = (
    Operand(1, _unless_batch_turned(_matmul_right), "transB"),
    Operand(0, _unless_batch_turned(_matmul_left), "transA"),
)
_ROWS = (Operand(1, _matmul_right),)
_ROTARY = "a table of rotary positions"
_QUANTIZED = "a part of a weight that is quantized already"

# Where both matrix operands are constant, the first of the list is the weight.
WEIGHT_OPERANDS: dict[tuple[str, str], tuple[Operand, ...]] = {
    ("", "MatMul"): (Operand(1, _matmul_right), Operand(0, _matmul_left)),
    ("", "Gemm"): _GEMM,
    ("", "Conv"): (Operand(1, _conv),),
    ("", "ConvTranspose"): (Operand(1, _conv_transpose),),
    ("", "Gather"): (Operand(0, _table, embedding=True),),
    (MICROSOFT, "FusedMatMul"): _FUSED_MATMUL,
    (MICROSOFT, "TransposeMatMul"): _FUSED_MATMUL,
    (MICROSOFT, "FusedGemm"): _GEMM,
    (MICROSOFT, "GemmFastGelu"): _ROWS,
    (MICROSOFT, "Attention"): _ROWS,
    (MICROSOFT, "FusedConv"): (Operand(1, _conv),),
    (MICROSOFT, "EmbedLayerNormalization"): tuple(Operand(index, _table, embedding=True) for index in (2, 3, 4)),
}

# What constants are that these operators read, beside weights.
_NO_WEIGHTS: dict[tuple[str, str], dict[int, str]] = {
    (MICROSOFT, "MatMulNBits"): dict.fromkeys(range(1, 6), _QUANTIZED),
    (MICROSOFT, "GatherBlockQuantized"): dict.fromkeys(range(4), "a part of a table that is quantized already"),
    (MICROSOFT, "QMoE"): dict.fromkeys(range(2, 15), "a part of weights that are quantized already"),
    (MICROSOFT, "GroupQueryAttention"): dict.fromkeys((7, 8), _ROTARY),
    (MICROSOFT, "RotaryEmbedding"): dict.fromkeys((2, 3), _ROTARY),
    ("", "RotaryEmbedding"): dict.fromkeys((1, 2), _ROTARY),
    ("", "DequantizeLinear"): {1: _QUANTIZED},
}

# As `operator_name` writes them.
WEIGHT_OPERATORS = tuple(f"{domain}::{op_type}" if domain else op_type for domain, op_type in WEIGHT_OPERANDS)


def domain_of(node: ir.Node) -> str:
    """The node's domain, with the default one always written as the empty string."""
    return "" if node.domain == "ai.onnx" else node.domain


def is_op(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether `node` is one of these standard ONNX operators."""
    return node is not None and domain_of(node) == "" and node.op_type in op_types


def producer(node: ir.Node, operand: int) -> ir.Node | None:
    """The node that makes an operand, looking through Identity, which onnxruntime removes."""
    value = node.inputs[operand] if operand < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    while is_op(maker, "Identity") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker


def operator_name(node: ir.Node) -> str:
    """`MatMul`, or `com.microsoft::FusedMatMul` outside of the default domain."""
    domain = domain_of(node)
    return f"{domain}::{node.op_type}" if domain else node.op_type


def weight_operands(node: ir.Node) -> tuple[Operand, ...]:
    """The inputs of a node that may be weights."""
    return WEIGHT_OPERANDS.get((domain_of(node), node.op_type), ())


def other_purpose(node: ir.Node, index: int) -> str | None:
    """What a constant is that an operator reads as this input, where it is known to be no weight."""
    if node.domain == DOMAIN:
        return "a rotation" if node.op_type == "Hadamard" else _QUANTIZED
    return _NO_WEIGHTS.get((domain_of(node), node.op_type), {}).get(index)
