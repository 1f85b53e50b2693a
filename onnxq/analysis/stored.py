"""Which weights of a model are quantized already, and how: told from the graph, whoever quantized it."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.formats import ALL_FORMATS, LEARNED_FORMATS, NAMED_FORMATS, SCALE_TYPES, Format
from onnxq.functions import DOMAIN, format_of
from onnxq.model.constants import constant_tensor
from onnxq.model.labels import label_of
from onnxq.model.operators import MICROSOFT, domain_of, operator_name
from onnxq.model.scopes import nodes

_FORMATS = {kind.onnx_type: kind for kind in NAMED_FORMATS.values() if kind.onnx_type}
_SCALES = {ir.DataType.from_numpy(kind.dtype): kind.name for kind in SCALE_TYPES.values()}
# Codes in the layout of a kernel are as many as without it.
_OWN = re.compile(r"(Dequantize|Gather|MatMul|Linear|SwiGLU)(.+?)(Tiled)?(Asymmetric)?")


@dataclass(frozen=True)
class StoredWeight:
    """One quantized constant.

    Attributes:
        name: Of the constant that holds the codes.
        label: What people call it: the path of the module that reads it, where the exporter noted it, or the name.
        op: Type of the operator that reads them.
        format: What a code means.
        bits: Of a code.
        shape: Of the weight.
        granularity: `per tensor`, `per channel` or `groups of 32`.
        scale: Type in which scales are stored.
        symmetric: Whether it has no zero points.
        size_bytes: Of codes, scales, zero points and outliers; those that several nodes read count once for each
            constant.
        outliers: Numbers that are added to the codes' ones.
    """

    name: str
    label: str
    op: str
    format: str
    bits: int
    shape: tuple[int, ...]
    granularity: str
    scale: str
    symmetric: bool
    size_bytes: int
    outliers: int = 0

    @property
    def bits_each(self) -> float:
        """Bits that an element takes, with scales and zero points."""
        return 8 * self.size_bytes / math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return vars(self) | {"bits_each": self.bits_each}


def find_stored(model: ir.Model) -> list[StoredWeight]:
    """Each quantized weight once, in the order in which its first reader stands in the model."""
    found: dict[str, StoredWeight] = {}
    for node in nodes(model):
        for each in _read_by(node):
            if each.size_bytes and math.prod(each.shape):
                found.setdefault(each.name, each)
    return list(found.values())


def is_part(value: ir.Value) -> bool:
    """Whether a constant is a scale or zero point of quantized weights, and nothing else."""
    uses = value.uses()
    return bool(uses) and all(_takes_part(use.node, use.idx) for use in uses)


def _takes_part(node: ir.Node, index: int) -> bool:
    match domain_of(node), node.op_type:
        case "", "DequantizeLinear" | "QuantizeLinear":
            return index > 0
        case (domain, "MatMulNBits") if domain == MICROSOFT:
            return index > 1
        case domain, _:
            return domain == DOMAIN


def _read_by(node: ir.Node) -> Iterator[StoredWeight]:
    match domain_of(node), node.op_type:
        case "", "DequantizeLinear":
            yield from _standard(node)
        case (domain, "MatMulNBits") if domain == MICROSOFT:
            yield from _blocks(node)
        case (domain, "PartlyBinary") if domain == DOMAIN:
            yield from _partly_binary(node)
        case (domain, op_type) if domain == DOMAIN and (called := _OWN.fullmatch(op_type)):
            yield from _own(node, *called.groups())


def _standard(node: ir.Node) -> Iterator[StoredWeight]:
    codes = constant_tensor(node.inputs[0])
    kind = None if codes is None else _FORMATS.get(codes.dtype.name)
    # Scales that have a scale themselves are no weight.
    of_scales = all(use.node.op_type == "DequantizeLinear" and use.idx == 1 for use in node.outputs[0].uses())
    if codes is None or kind is None or (of_scales and node.outputs[0].uses()):
        return
    shape = tuple(codes.shape.numpy())
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    length = shape[axis] if shape else 1
    granularity = "per tensor" if _is_one(node.inputs[1]) else _along(length, block or length)
    yield _stored(node, kind, shape, granularity, node.inputs[:3])


def _own(node: ir.Node, family: str, suffix: str, tiled: str | None, asymmetric: str | None) -> Iterator[StoredWeight]:
    first = 0 if family in ("Dequantize", "Gather") else 1
    operands = node.inputs[first : first + (3 if asymmetric else 2)]
    table = node.inputs[first + 2 : first + 3]
    if constant_tensor(operands[0]) is None:
        return
    try:
        kind = format_of(suffix)
    except UsageError:
        # A version of onnxq that knows more formats wrote it.
        return
    shape = tuple(node.attributes["shape"].as_ints())
    along_rows = family == "Gather" and not tiled
    axis, block = node.attributes.get_int("axis", int(along_rows)), node.attributes.get_int("block_size", 1)
    granularity = "per tensor" if _is_one(operands[1]) else _along(shape[axis], block)
    yield _stored(node, kind, shape, granularity, operands, table if kind.name in LEARNED_FORMATS else ())


def _partly_binary(node: ir.Node) -> Iterator[StoredWeight]:
    sign, mask, scale, *others = node.inputs
    if constant_tensor(sign) is not None:
        shape, axis = tuple(node.attributes["shape"].as_ints()), node.attributes["axis"].as_int()
        granularity = "per tensor" if _is_one(scale) else _along(shape[axis], node.attributes["block_size"].as_int())
        yield _stored(node, ALL_FORMATS["binary"], shape, granularity, [sign, scale], [mask, *others])


def _blocks(node: ir.Node) -> Iterator[StoredWeight]:
    """Codes are unsigned, and without zero points the middle one means zero: integers of the same width."""
    bits, operands = node.attributes.get_int("bits", 4), node.inputs[1:4]
    if constant_tensor(operands[0]) is None:
        return
    shape = (node.attributes["K"].as_int(), node.attributes["N"].as_int())
    asymmetric = len(operands) > 2 and operands[2] is not None
    if (kind := NAMED_FORMATS.get(f"{'u' * asymmetric}int{bits}")) is not None:
        yield _stored(node, kind, shape, _along(shape[0], node.attributes["block_size"].as_int()), operands)


def _stored(
    node: ir.Node,
    kind: Format,
    shape: tuple[int, ...],
    granularity: str,
    operands: Sequence[ir.Value | None],
    others: Sequence[ir.Value | None] = (),
) -> StoredWeight:
    """From codes, scales and perhaps zero points, and what else the operator reads that is stored for this weight."""
    codes, scale, zero = (*operands, None)[:3]
    scales = _scales(scale)
    adding = _adding(node)
    beside = [] if adding is None else [each for each in map(constant_tensor, adding.inputs[1:]) if each is not None]
    tensors = [constant_tensor(codes), *scales, *map(constant_tensor, (zero, *others)), *beside]
    maker = None if scale is None else scale.producer()
    scale_name = "?" if not scales else _SCALES.get(scales[0].dtype, scales[0].dtype.name.lower())
    if maker is not None and maker.domain == DOMAIN:
        # One byte each, whose meaning is that of the operator.
        scale_name = maker.op_type.removeprefix("Scale").lower()
    name = "" if codes is None else str(codes.name)
    dequantizes = node.op_type.startswith(("Dequantize", "PartlyBinary"))
    return StoredWeight(
        name=name,
        label=label_of(name, [use.node for use in (adding or node).outputs[0].uses()] if dequantizes else [node]),
        op=operator_name(node),
        format=kind.name,
        bits=kind.bits,
        shape=shape,
        granularity=granularity,
        scale=scale_name,
        symmetric=zero is None,
        size_bytes=sum(each.nbytes for each in tensors if each is not None),
        outliers=beside[-1].size if beside else 0,
    )


def _adding(node: ir.Node) -> ir.Node | None:
    """The node that adds outliers to the weight that a node makes."""
    users = (use.node for use in node.outputs[0].uses())
    return next((user for user in users if (user.domain, user.op_type) == (DOMAIN, "AddOutliers")), None)


def _along(length: int, block: int) -> str:
    return "per channel" if block >= length else f"groups of {block}"


def _is_one(scale: ir.Value | None) -> bool:
    scales = _scales(scale)
    return bool(scales) and scales[0].size == 1


def _scales(value: ir.Value | None) -> list[ir.TensorProtocol]:
    """The scales as stored, and the scale of the scales where a node dequantizes them."""
    maker = None if value is None else value.producer()
    operands = [value] if maker is None or maker.op_type == "Constant" else list(maker.inputs[:2])
    return [tensor for each in operands if (tensor := constant_tensor(each)) is not None]
