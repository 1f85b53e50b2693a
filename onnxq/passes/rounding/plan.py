"""The plan for activations: which values of a model are rounded, and why others are not. Pure, as `plan` is."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import onnx_ir as ir

from onnxq.errors import number_of
from onnxq.model.constants import constant_tensor, trace, view_shape
from onnxq.model.operators import is_op, operator_name
from onnxq.model.opset import obstacle_to
from onnxq.model.sites import Site, Weight, find_weights
from onnxq.passes.calibrate import channel_axis
from onnxq.passes.selection import Selection
from onnxq.passes.target import Target, activation_versions
from onnxq.recipes import ActivationSpec, QuantSpec, Recipe
from onnxq.statistics.requests import Request
from onnxq.statistics.views import ALL, Axis

_BYTES = ("int8", "uint8")
# Between a convolution and the value that its integer kernel puts out: what is folded into it, or costs nothing there.
_BEHIND_CONV = ("BatchNormalization", "Relu", "Clip", "Identity")


@dataclass(frozen=True)
class ActivationDecision:
    """What happens to one activation: a value that meets a weight, or that an integer convolution puts out.

    Attributes:
        tensor: Its name.
        op: Type of the first operator that reads it.
        readers: Names of the nodes that this is about. Others may read the same value otherwise.
        spec: How it is quantized; None where it is not.
        reason: Why it is not quantized; None where it is.
        is_missed: The recipe asks for it, and it cannot be done.
    """

    tensor: str
    op: str
    readers: tuple[str, ...]
    spec: ActivationSpec | None
    reason: str | None
    is_missed: bool = False


@dataclass(frozen=True)
class ActivationSite:
    """A value that is rounded.

    Attributes:
        value: It.
        uses: Nodes that will read it rounded, and which of their inputs it is.
        axis: The axis that a product sums over: 1, -1 or -2.
        channels: Size of that axis.
        trailing: How many axes lie behind it.
        dtype: Of the value.
        spec: How it is rounded.
    """

    value: ir.Value
    uses: tuple[tuple[ir.Node, int], ...]
    axis: int
    channels: int
    trailing: int
    dtype: ir.DataType
    spec: ActivationSpec

    @property
    def view(self) -> Axis:
        """Its channels, for statistics."""
        return Axis(self.axis)

    def request(self) -> Request | None:
        """What must be known about it, or None."""
        name = str(self.value.name)
        if self.spec.is_dynamic:
            return None
        if self.spec.granularity == "channel":
            return Request(name, self.channels, ("channel_min", "channel_max"), self.view)
        return Request(name, 1, ("min", "max") if self.spec.ranging == "absmax" else ("histogram",), ALL)


@dataclass(frozen=True)
class ActivationPlan:
    """Decisions about activations, in model order.

    Attributes:
        decisions: One for each value and what happens to it.
        sites: The values that are rounded, in the order of their decisions.
        opset: What rounding needs while weights are solved; 0 where nothing is rounded.
        ir_version: Likewise.
    """

    decisions: tuple[ActivationDecision, ...] = ()
    sites: tuple[ActivationSite, ...] = field(default=(), repr=False)
    opset: int = 0
    ir_version: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the recipe asks for and does not get, a sentence for each reason."""
        missed = Counter(each.reason for each in self.decisions if each.is_missed)
        return tuple(
            f"not rounded as the recipe asks: {number_of(count, 'activation')}, {reason}"
            for reason, count in missed.items()
        )

    def requests(self) -> list[Request]:
        """What must be known about them."""
        return [request for site in self.sites if (request := site.request()) is not None]


@dataclass(frozen=True)
class _Asked:
    """What decisions depend on beside the place."""

    model: ir.Model
    recipe: Recipe
    selection: Selection
    target: Target
    raising: Callable[[int], str | None]


@dataclass(frozen=True)
class _Stays:
    """Why an activation is not quantized, and whether the recipe asks for it all the same."""

    reason: str
    is_missed: bool = False


_Fate = ActivationSpec | _Stays


@dataclass
class _Group:
    """Uses of one value that share a fate."""

    value: ir.Value
    fate: _Fate
    uses: list[tuple[ir.Node, int]]
    axis: int
    channels: int
    trailing: int
    dtype: ir.DataType


def plan_activations(model: ir.Model, recipe: Recipe, target: Target, selection: Selection) -> ActivationPlan:
    """Decide about each value that is multiplied with a weight."""
    if not any(rule.activation for rule in recipe.rules):
        return ActivationPlan()
    asked = _Asked(model, recipe, selection, target, cache(partial(obstacle_to, model)))
    found: dict[tuple[ir.Value, _Fate], _Group] = {}
    integer: list[tuple[Weight, Site, ActivationSpec]] = []
    for weight, site in _operands(model):
        value = site.node.inputs[1 - site.index]
        if value is None:
            continue
        fate = _fate(weight, site, value, asked)
        channels = (0, 0, 0) if isinstance(fate, _Stays) else _channels(weight, site, value)
        group = found.setdefault((value, fate), _Group(value, fate, [], *channels, weight.dtype))
        group.uses.append((site.node, 1 - site.index))
        if isinstance(fate, ActivationSpec) and _runs_as_integers(weight, site, fate, recipe):
            integer.append((weight, site, fate))
    for weight, site, spec in integer:
        _round_around(weight, site, spec, found)
    order = {node: at for at, node in enumerate(model.graph.all_nodes())}
    groups = sorted(found.values(), key=lambda group: min(order.get(node, len(order)) for node, _ in group.uses))
    sites = tuple(
        ActivationSite(each.value, tuple(each.uses), each.axis, each.channels, each.trailing, each.dtype, each.fate)
        for each in groups
        if isinstance(each.fate, ActivationSpec)
    )
    versions = [activation_versions(each.spec, each.dtype) for each in sites]
    return ActivationPlan(
        tuple(_decision(each) for each in groups),
        sites,
        max((opset for opset, _ in versions), default=0),
        max((version for _, version in versions), default=0),
    )


def _operands(model: ir.Model) -> Iterator[tuple[Weight, Site]]:
    """Weights, and the places where they are multiplied with something, in model order."""
    for weight in find_weights(model):
        for site in weight.sites:
            if not site.embedding and site.index < 2 and len(site.node.inputs) > 1:
                yield weight, site


def _fate(weight: Weight, site: Site, value: ir.Value, asked: _Asked) -> _Fate:
    """The spec of an activation, or why it is not quantized."""
    if (refusal := asked.selection.refusal(weight)) is not None:
        return _Stays(refusal)
    answer = asked.recipe.decide_activation(names=weight.names, op=weight.op, role=weight.role, size=weight.size)
    if isinstance(answer, str):
        return _Stays(answer)
    if constant_tensor(trace(value)[0]) is not None:
        return _Stays("constant")
    if is_op(value.producer(), "DequantizeLinear"):
        return _Stays("quantized already")
    obstacle = _obstacle(weight, site, value, answer, asked)
    return answer if obstacle is None else _Stays(obstacle, is_missed=True)


def _obstacle(weight: Weight, site: Site, value: ir.Value, spec: ActivationSpec, asked: _Asked) -> str | None:
    """Why an activation cannot be what the recipe asks for."""
    graph = asked.model.graph
    if weight.in_function or site.node.graph is not graph or value.graph is not graph:
        return (
            "in a subgraph or function: only values of the main graph are rounded (of a merged decoder, take the "
            "decoders that it was made of)"
        )
    if weight.obstacle is not None:
        return f"its weight stays float: {weight.obstacle}"
    if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"{weight.dtype.name} activations are not rounded, only FLOAT and FLOAT16"
    if spec.of_rows and channel_axis(site, value) != -1:
        return f"what {operator_name(site.node)} sums over does not lie along the last axis: there are no tokens"
    if spec.group_size is not None and (channels := _channels(weight, site, value)[1]) % spec.group_size:
        return f"its {channels} channels are no whole groups of {spec.group_size}"
    if spec.granularity == "tensor" and spec.is_dynamic and weight.dtype != ir.DataType.FLOAT:
        return "DynamicQuantizeLinear takes FLOAT only: granularity: token takes FLOAT16 too"
    return asked.raising(activation_versions(spec, weight.dtype, asked.target)[0])


def _channels(weight: Weight, site: Site, value: ir.Value) -> tuple[int, int, int]:
    """The axis of an activation that is summed over, its size, and how many axes lie behind it."""
    axis = channel_axis(site, value)
    shape = view_shape(weight.tensor.shape.numpy(), site.steps or ())
    if axis != 1:
        return axis, shape[site.layout.reduction], -1 - axis
    group = site.node.attributes.get("group") if site.layout.flatten else None
    return axis, shape[site.layout.reduction] * (1 if group is None else int(group.value)), len(shape) - 2


def _runs_as_integers(weight: Weight, site: Site, spec: ActivationSpec, recipe: Recipe) -> bool:
    """Whether a convolution can become a QLinearConv."""
    answer = recipe.decide(names=weight.names, op=weight.op, role=weight.role, size=weight.size)
    whole = spec.format in _BYTES and spec.granularity == "tensor" and not spec.is_dynamic
    return (
        is_op(site.node, "Conv")
        and whole
        and weight.dtype == ir.DataType.FLOAT
        and isinstance(answer, QuantSpec)
        and all(name in _BYTES for name in answer.format)
        and not answer.outliers
    )


def _round_around(
    weight: Weight, site: Site, spec: ActivationSpec, found: dict[tuple[ir.Value, _Fate], _Group]
) -> None:
    """Let everybody read what an integer convolution reads, and round what it puts out, as its kernel wants.

    Readers that the recipe leaves alone stay as they are.
    """
    value, result = site.node.inputs[0], site.node.outputs[0]
    while len(result.uses()) == 1 and not result.is_graph_output():
        (use,) = result.uses()
        if use.idx or not is_op(use.node, *_BEHIND_CONV):
            break
        result = use.node.outputs[0]
    for each in (value, result):
        if each is None:
            continue
        claimed = {use for (other, _), group in found.items() if other is each for use in group.uses}
        free = [(use.node, use.idx) for use in each.uses() if (use.node, use.idx) not in claimed]
        free = [use for use in free if use[0].graph is site.node.graph]
        if free:
            group = found.setdefault((each, spec), _Group(each, spec, [], 1, 0, 0, weight.dtype))
            group.uses += free


def _decision(group: _Group) -> ActivationDecision:
    fate = group.fate
    return ActivationDecision(
        tensor=str(group.value.name),
        op=operator_name(group.uses[0][0]),
        readers=tuple(node.name or "" for node, _ in group.uses),
        spec=fate if isinstance(fate, ActivationSpec) else None,
        reason=fate.reason if isinstance(fate, _Stays) else None,
        is_missed=isinstance(fate, _Stays) and fate.is_missed,
    )
