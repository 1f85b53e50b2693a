"""The plan: what happens to each weight, or why nothing does. Pure: nothing is read but shapes, nothing is changed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import onnx_ir as ir

from onnxq.errors import number_of
from onnxq.model.named import Named
from onnxq.model.opset import obstacle_to
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.form import needs, planned_bytes
from onnxq.passes.fusion import is_matmul_weight
from onnxq.passes.selection import Selection, unmatched
from onnxq.passes.target import Target
from onnxq.recipes import Correction, QuantSpec, Recipe, Role

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
        missed: Patterns of the recipe and the caller that match no weight, in sentences.
        detours: Weights that take another form than that of the target, in sentences.
        correct: What is changed around the quantized weights.
    """

    recipe: str
    target: Target
    decisions: tuple[Decision, ...]
    opset: int = 0
    ir_version: int = 0
    missed: tuple[str, ...] = ()
    detours: tuple[str, ...] = ()
    correct: tuple[Correction, ...] = ()

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """Weights that will be quantized."""
        return tuple(each for each in self.decisions if each.spec is not None)

    @property
    def skipped(self) -> tuple[Decision, ...]:
        """Weights that stay as they are."""
        return tuple(each for each in self.decisions if each.spec is None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of it nobody may have meant."""
        return (*self.missed, *self.detours)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)


def make_plan(
    model: ir.Model, recipe: Recipe, target: Target, selection: Selection = _ALL
) -> tuple[Plan, list[Weight]]:
    """Decide about each weight of a model.

    Returns:
        The plan, and the weights in the order of its decisions.
    """
    weights, raising = find_weights(model), _raising(model)
    decisions = tuple(_decide(weight, recipe, target, selection, raising) for weight in weights)
    missed = tuple(unmatched(weights, recipe, selection))
    return _complete(
        Plan(recipe.name, target, decisions, missed=missed, correct=recipe.correct), weights, raising
    ), weights


def revise(plan: Plan, model: ir.Model, weights: Sequence[Weight]) -> Plan:
    """The same decisions, with the form that each weight takes in the model as it is now.

    Args:
        plan: From `make_plan`.
        model: Has other nodes behind products than it had then, and so onnxruntime fuses others.
        weights: Of the plan, in its order.
    """
    raising = _raising(model)

    def revised(weight: Weight, decision: Decision) -> Decision:
        if (spec := decision.spec) is None:
            return decision
        target = _form(weight, spec, plan.target, raising)
        return replace(decision, target=target, planned_bytes=planned_bytes(weight, spec, target))

    decisions = tuple(map(revised, weights, plan))
    return _complete(replace(plan, decisions=decisions), weights, raising)


def _raising(model: ir.Model) -> Callable[[int], str | None]:
    """Why a model cannot have an opset, asked once for each."""
    return cache(partial(obstacle_to, model))


def _complete(plan: Plan, weights: Sequence[Weight], raising: Callable[[int], str | None]) -> Plan:
    """A plan with what its decisions need of the model."""
    versions, detours = [], Counter[str]()
    for weight, each in zip(weights, plan, strict=True):
        if each.spec is not None:
            versions += needs(weight, each.spec, each.target)
            if each.target != plan.target:
                detours[str(_obstacle(weight, each.spec, plan.target, raising))] += 1
    opset, ir_version = (max((pair[at] for pair in versions), default=0) for at in (0, 1))
    sentences = (
        f"{number_of(count, 'weight')} under onnxq operators, as DequantizeLinear {obstacle}"
        for obstacle, count in detours.items()
    )
    return replace(plan, opset=opset, ir_version=ir_version, detours=tuple(sentences))


def _decide(
    weight: Weight, recipe: Recipe, target: Target, selection: Selection, raising: Callable[[int], str | None]
) -> Decision:
    spec, reason, planned = None, weight.obstacle or selection.refusal(weight), weight.size_bytes
    if reason is None:
        answer = recipe.decide(names=weight.names, op=weight.op, role=weight.role, size=weight.size)
        if isinstance(answer, str):
            reason = answer
        else:
            target = _form(weight, answer, target, raising) if weight.size else target
            planned = planned_bytes(weight, answer, target) if weight.size else 0
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


def _form(weight: Weight, spec: QuantSpec, target: Target, raising: Callable[[int], str | None]) -> Target:
    """The target whose form a weight takes: `native`, which needs next to no opset, where its own needs too much."""
    if target == "standard" or _obstacle(weight, spec, target, raising) is None:
        return target
    return "native"


def _refusal(
    weight: Weight, spec: QuantSpec, target: Target, planned: int, raising: Callable[[int], str | None]
) -> str | None:
    """Why a weight that the recipe wants quantized cannot be, or is better left alone."""
    if weight.size == 0:
        return "empty"
    if spec.low_rank and not is_matmul_weight(weight):
        return "low_rank needs products x @ weight: MatMul with a matrix on the right"
    if planned >= weight.size_bytes:
        return f"would not get smaller ({planned} bytes with scales, {weight.size_bytes} now)"
    return _obstacle(weight, spec, target, raising)


def _obstacle(weight: Weight, spec: QuantSpec, target: Target, raising: Callable[[int], str | None]) -> str | None:
    """Why the model cannot have the opset that a weight needs in the form of a target."""
    return raising(max(version for version, _ in needs(weight, spec, target)))
