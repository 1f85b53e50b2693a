"""The plan: what happens to each weight, or why nothing does. Pure: nothing is read but shapes, nothing is changed."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.errors import number_of
from onnxq.formats import LEARNED_FORMATS, Format, Integer, get_format, get_scale_type, packed_bytes
from onnxq.formats.scales import ScaleType
from onnxq.formats.sparse import ENTRY_BYTES, most_entries
from onnxq.methods import outliers
from onnxq.methods.solve.pb_llm import salient_count
from onnxq.model.labels import Named
from onnxq.model.operators import domain_of
from onnxq.model.opset import obstacle_to
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.fusion import will_fuse, will_tile
from onnxq.passes.integers import reads_integers
from onnxq.passes.selection import Selection, unmatched
from onnxq.passes.target import LOSSLESS_INT8, Target, is_standard_form, needed_versions
from onnxq.recipes import Correction, QuantSpec, Recipe, Role

_AUTO_SCALES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_ALL = Selection()


@dataclass(frozen=True)
class Decision(Named):
    """What happens to one weight.

    Attributes:
        role: What it is for.
        shape: As the operators read it.
        size_bytes: Bytes in the file now.
        spec: How it is quantized; None where it is not.
        reason: Why it is not quantized; None where it is.
        planned_bytes: Bytes of codes, scales and zero points; `size_bytes` where it is not quantized.
        target: Where it goes: as the plan, or `native` where the model cannot have the opset of the plan's form.
    """

    role: Role
    shape: tuple[int, ...]
    size_bytes: int
    spec: QuantSpec | None
    reason: str | None
    planned_bytes: int
    target: Target


@dataclass(frozen=True)
class Plan:
    """One decision for each weight of the model, in model order; their number adds up.

    Attributes:
        recipe: Name of the recipe.
        target: Where the model goes.
        decisions: One for each weight.
        opset: What the quantized weights need; 0 where nothing is quantized.
        ir_version: Likewise.
        warnings: Patterns of the recipe and the caller that match no weight, and weights that take another form than
            that of the target, in sentences.
        correct: What is changed around the quantized weights.
    """

    recipe: str
    target: Target
    decisions: tuple[Decision, ...]
    opset: int = 0
    ir_version: int = 0
    warnings: tuple[str, ...] = ()
    correct: tuple[Correction, ...] = ()

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """Weights that will be quantized."""
        return tuple(each for each in self.decisions if each.spec is not None)

    @property
    def skipped(self) -> tuple[Decision, ...]:
        """Weights that stay as they are."""
        return tuple(each for each in self.decisions if each.spec is None)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)


@dataclass(frozen=True)
class Grouping:
    """A spec applied to one shape.

    Attributes:
        matrix: [A, K, C], K the axis summed over: how the solver sees the weight.
        block: Weights along K that share a scale; None for one scale in all.
        scale_type: What a scale is stored as.
    """

    matrix: tuple[int, int, int]
    block: int | None
    scale_type: ScaleType

    @property
    def scales(self) -> int:
        """Number of scales."""
        a, k, c = self.matrix
        return 1 if self.block is None else a * math.ceil(k / self.block) * c


def grouping(weight: Weight, spec: QuantSpec) -> Grouping:
    """How the scales of a weight lie; the weight must have no obstacle."""
    layout, shape = weight.layout, weight.shape
    if layout is None:
        raise ValueError(weight.name)
    if layout.flatten:
        matrix = (shape[0], math.prod(shape[1:]), 1)
    else:
        at = layout.reduction
        matrix = (math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :]))
    block = {"tensor": None, "channel": matrix[1], "group": spec.group_size}[spec.granularity]
    return Grouping(matrix, block, get_scale_type(_AUTO_SCALES[weight.dtype] if spec.scale == "auto" else spec.scale))


def make_plan(
    model: ir.Model, recipe: Recipe, target: Target, selection: Selection = _ALL
) -> tuple[Plan, list[Weight]]:
    """Decide about each weight of a model.

    Returns:
        The plan, and the weights in the order of its decisions.
    """
    weights = find_weights(model)
    can_raise: dict[int, str | None] = {}

    def raising(opset: int) -> str | None:
        if opset not in can_raise:
            can_raise[opset] = obstacle_to(model, opset)
        return can_raise[opset]

    decisions = tuple(_decide(weight, recipe, target, selection, raising) for weight in weights)
    versions, detours = [], []
    for weight, each in zip(weights, decisions, strict=True):
        if each.spec is not None:
            versions += needs(weight, each.spec, each.target)
            if each.target != target:
                detours.append(str(_obstacle(weight, each.spec, target, raising)))
    opset, ir_version = (max((pair[at] for pair in versions), default=0) for at in (0, 1))
    warnings = [*unmatched(weights, recipe, selection)]
    for obstacle, count in Counter(detours).items():
        warnings.append(f"{number_of(count, 'weight')} under onnxq operators, as DequantizeLinear {obstacle}")
    return Plan(recipe.name, target, decisions, opset, ir_version, tuple(warnings), recipe.correct), weights


def _decide(
    weight: Weight, recipe: Recipe, target: Target, selection: Selection, raising: Callable[[int], str | None]
) -> Decision:
    spec, reason, planned = None, weight.obstacle or selection.refusal(weight), weight.size_bytes
    if reason is None:
        answer = recipe.decide(names=weight.names, op=weight.op, role=weight.role, size=weight.size)
        if isinstance(answer, str):
            reason = answer
        else:
            if weight.size and target != "standard" and _obstacle(weight, answer, target, raising):
                # The functions need next to no opset.
                target = "native"
            planned = _planned_bytes(weight, answer, target) if weight.size else 0
            reason = _refusal(weight, answer, target, planned, raising)
            spec = answer if reason is None else None
    return Decision(
        weight=weight.name,
        label=weight.label,
        op=weight.op,
        readers=tuple(site.node.name or "" for site in weight.sites),
        role=weight.role,
        shape=weight.shape,
        size_bytes=weight.size_bytes,
        spec=spec,
        reason=reason,
        planned_bytes=planned if reason is None else weight.size_bytes,
        target=target,
    )


def _refusal(
    weight: Weight, spec: QuantSpec, target: Target, planned: int, raising: Callable[[int], str | None]
) -> str | None:
    """Why a weight that the recipe wants quantized cannot be, or is better left alone."""
    if weight.size == 0:
        return "empty"
    if spec.low_rank and not _multiplies_from_the_right(weight):
        return "low_rank needs products x @ weight: MatMul with a matrix on the right"
    if planned >= weight.size_bytes:
        return f"would not get smaller ({planned} bytes with scales, {weight.size_bytes} now)"
    return _obstacle(weight, spec, target, raising)


def _obstacle(weight: Weight, spec: QuantSpec, target: Target, raising: Callable[[int], str | None]) -> str | None:
    """Why the model cannot have the opset that a weight needs in the form of a target."""
    return raising(max(version for version, _ in needs(weight, spec, target)))


def _multiplies_from_the_right(weight: Weight) -> bool:
    """All that read a weight are x @ weight."""
    wanted = ("", "MatMul", 1)
    return len(weight.shape) == 2 and all(
        (domain_of(site.node), site.node.op_type, site.index) == wanted for site in weight.sites
    )


def needs(weight: Weight, spec: QuantSpec, target: Target) -> list[tuple[int, int]]:
    """Opset and IR version that each candidate format of a spec needs."""
    flat = weight.layout is not None and weight.layout.flatten
    blocked = spec.granularity == "group" or (spec.granularity == "channel" and len(weight.shape) != 2 and not flat)
    kinds = [get_format(name) for name in spec.format]
    return [
        needed_versions(
            kind,
            weight.dtype,
            target,
            standard=leaves_standard(weight, kind, spec, target),
            blocked=blocked,
        )
        for kind in kinds
    ]


def leaves_standard(weight: Weight, kind: Format, spec: QuantSpec, target: Target) -> bool:
    """Whether a weight leaves under a standard `DequantizeLinear`; if not, it leaves under a function of onnxq's."""
    group = grouping(weight, spec)
    if not is_standard_form(kind, group.scale_type, weight.dtype, target):
        return False
    if target == "ort-cuda" and leaves_tiled(weight, kind, spec):
        return False
    if target == "standard":
        # Constant, which a function body needs, does not know the 6-bit types (ONNX 1.23, opset 28).
        return not (weight.in_function and kind.bits == 6)
    # A DequantizeLinear that onnxruntime does not fuse into a kernel expands its weight again in every run; a function
    # of onnxq's is folded to float when the model is loaded, and runs as fast as the float model did.
    if not isinstance(kind, Integer) or spec.outliers:
        return False
    return runs_as_integers(weight, kind, spec) or will_fuse(weight, group.block, kind.bits)


def leaves_tiled(weight: Weight, kind: Format, spec: QuantSpec) -> bool:
    """Whether a weight leaves in the layout of onnxq's GPU kernels, where the target has them."""
    return not spec.outliers and will_tile(weight, kind, grouping(weight, spec).block)


def runs_as_integers(weight: Weight, kind: Format, spec: QuantSpec) -> bool:
    """Whether a weight and the 8-bit activations that it meets are multiplied as integers."""
    if spec.outliers:
        return False
    group = grouping(weight, spec)
    whole = group.block in (None, group.matrix[1]) and weight.dtype == ir.DataType.FLOAT
    # Zero points of convolution weights must be zero; those of others are left to MatMulNBits.
    return whole and isinstance(kind, Integer) and kind.bits == 8 and kind.signed and reads_integers(weight)


def _planned_bytes(weight: Weight, spec: QuantSpec, target: Target) -> int:
    """Bytes of codes, scales and zero points, with the widest of the candidate formats.

    A weight that becomes int8 without loss takes some more where the kernel's blocks are filled up.
    """
    kinds = [get_format(name) for name in spec.format]
    int8 = target == "ort-int8" and weight.dtype != ir.DataType.BFLOAT16 and not spec.outliers
    bits = max(8 if int8 and kind.onnx_type in LOSSLESS_INT8 else kind.bits for kind in kinds)
    group = grouping(weight, spec)
    # Scales of one byte have one float32 for the tensor beside them.
    itemsize = group.scale_type.dtype.itemsize
    tiled = target == "ort-cuda" and any(leaves_tiled(weight, kind, spec) for kind in kinds)
    # There each column has a scale of its own, and each zero point a byte.
    count = max(group.scales, group.matrix[2]) if tiled else group.scales
    zeros = 0 if spec.symmetric else count if tiled else packed_bytes(count, bits)
    if spec.salient:
        # Signs and a mask, integers, means beside scales, and a scale of the integers for each column.
        few, columns = salient_count(weight.size, spec.salient), group.matrix[0] * group.matrix[2]
        signs = packed_bytes(weight.size - few, 1) + packed_bytes(weight.size, 1)
        return signs + few + (2 * count + columns) * itemsize
    beside = math.ceil(spec.low_rank * sum(weight.shape) * weight.dtype.itemsize) if spec.low_rank else 0
    if any(name in LEARNED_FORMATS for name in spec.format):
        beside += 4 * 2**bits
    if spec.outliers:
        beside += ENTRY_BYTES * most_entries(outliers.count(weight.size, spec.outliers), weight.size)
    return packed_bytes(weight.size, bits) + count * itemsize + (4 if itemsize == 1 else 0) + zeros + beside
