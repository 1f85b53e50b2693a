"""Which statistics a plan needs, and where in the model they are found."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.methods.solve import SOLVERS
from onnxq.model.load import Model
from onnxq.model.operators import MICROSOFT, domain_of, is_set
from onnxq.model.sites import Site, Weight
from onnxq.passes.plan import Plan
from onnxq.statistics.cache import collected, load_statistics
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.reductions import Kind
from onnxq.statistics.requests import Request
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import LAST, Axis, Patches, View

_RIGHT = ("MatMul", "Gemm", "FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu", "Attention")
_CONVOLUTIONS = ("Conv", "FusedConv")
_DOMAINS = ("", MICROSOFT)

# Small, and what most methods look at.
_CHANNEL_KINDS: tuple[Kind, ...] = (
    "channel_absmax",
    "channel_min",
    "channel_max",
    "channel_sum",
    "channel_abs_sum",
)


@dataclass(frozen=True)
class Reading:
    """The activation that an operator multiplies with a weight.

    Attributes:
        tensor: Its name, in the main graph.
        channels: How many values of it meet one column of the weight.
        view: What of it they are.
    """

    tensor: str
    channels: int
    view: View = LAST

    def request(self, *kinds: Kind) -> Request:
        """Ask about it."""
        return Request(self.tensor, self.channels, kinds, self.view)

    def against_float(self) -> Request:
        """Ask how it lies to what the float model has in its place, where both are known."""
        return Request(self.tensor, self.channels, ("cross",), self.view, (float_name(self.tensor), self.channels))


def float_name(tensor: str) -> str:
    """How the activation of the float model is called beside that of a model whose first layers are quantized."""
    return f"onnxq.float/{tensor}"


def reading_of(weight: Weight, graph: ir.Graph) -> Reading | None:
    """What is multiplied with a weight, where it is a value of the main graph and the weight is one matrix.

    A weight that several nodes read is calibrated on what the first of them reads.
    """
    if weight.in_function or not weight.sites or weight.layout is None:
        return None
    site = weight.sites[0]
    value = site.node.inputs[1 - site.index] if site.index < 2 and len(site.node.inputs) > 1 else None
    if value is None or not value.name or site.node.graph is not graph or domain_of(site.node) not in _DOMAINS:
        return None
    if site.node.op_type in _CONVOLUTIONS:
        return _of_convolution(site.node, value.name, weight.shape)
    if site.node.op_type == "ConvTranspose":
        group = site.node.attributes.get("group")
        single = group is None or group.as_int() == 1
        return Reading(value.name, weight.shape[0], Axis(1)) if single else None
    if site.node.op_type not in _RIGHT or len(weight.shape) != 2:
        return None
    return Reading(value.name, weight.shape[weight.layout.reduction], Axis(channel_axis(site, value)))


def readings_of(weights: Iterable[Weight], graph: ir.Graph) -> dict[Reading, list[Weight]]:
    """What is multiplied with some weights, and with which of them; those of which it is not known are left out."""
    found: dict[Reading, list[Weight]] = {}
    for weight in weights:
        if (reading := reading_of(weight, graph)) is not None:
            found.setdefault(reading, []).append(weight)
    return found


def channel_axis(site: Site, value: ir.Value) -> int:
    """The axis of an operand that a product or convolution sums over."""
    if site.node.op_type in (*_CONVOLUTIONS, "ConvTranspose"):
        return 1
    if value.shape is not None and len(value.shape) == 1:
        return -1
    if site.index == 1:
        return -2 if is_set(site.node, "transA") else -1
    return -1 if is_set(site.node, "transB") else -2


def _of_convolution(node: ir.Node, tensor: str, shape: tuple[int, ...]) -> Reading:
    def numbers(name: str) -> tuple[int, ...]:
        attribute = node.attributes.get(name)
        return () if attribute is None else tuple(attribute.as_ints())

    group, padding = node.attributes.get("group"), node.attributes.get("auto_pad")
    view = Patches(
        kernel=shape[2:],
        groups=1 if group is None else group.as_int(),
        strides=numbers("strides"),
        pads=numbers("pads"),
        dilations=numbers("dilations"),
        auto_pad="NOTSET" if padding is None else padding.as_string(),
    )
    return Reading(tensor, math.prod(shape[1:]), view)


def requests(
    plan: Plan, weights: Sequence[Weight], graph: ir.Graph, exact: Mapping[str, str] | None = None
) -> list[Request]:
    """What the solvers and corrections of a plan want to know about activations.

    Args:
        plan: From `make_plan`.
        weights: From `make_plan`.
        graph: The main graph.
        exact: Activations that are rounded, and what each was before.
    """
    wanted = []
    for weight, decision in zip(weights, plan, strict=True):
        reading = None if decision.spec is None else _measured(weight, graph)
        if decision.spec is None or reading is None:
            continue
        if SOLVERS[decision.spec.method].hessian != "no":
            wanted.append(reading.request("hessian"))
        if "bias" in plan.correct:
            before = (exact or {}).get(reading.tensor, reading.tensor)
            wanted += [replace(reading, tensor=name).request("channel_sum") for name in (reading.tensor, before)]
    return wanted


def _measured(weight: Weight, graph: ir.Graph) -> Reading | None:
    """What solvers ask about, where it is known."""
    reading = reading_of(weight, graph)
    return reading if reading is not None and reading.view.groups == 1 else None


def unmeasured(plan: Plan, weights: Sequence[Weight], graph: ir.Graph) -> list[str]:
    """Names of the weights whose method needs data and gets none."""
    return [
        weight.name
        for weight, each in zip(weights, plan, strict=True)
        if each.spec and SOLVERS[each.spec.method].hessian == "needs" and _measured(weight, graph) is None
    ]


def all_requests(weights: Sequence[Weight], graph: ir.Graph) -> list[Request]:
    """What any method may want to know about the activations that meet a weight."""
    wanted = []
    for weight in weights:
        if (reading := reading_of(weight, graph)) is not None:
            if reading.view.groups == 1:
                wanted.append(reading.request("hessian", "channel_sum"))
            if reading.view.rank == 2:
                wanted.append(reading.request(*_CHANNEL_KINDS))
            wanted.append(reading.request("absmax", "min", "max"))
    return wanted


def needy(plan: Plan) -> list[str]:
    """What of a plan cannot do without data."""
    methods = {each.spec.method for each in plan if each.spec is not None}
    needing = sorted(f"method {name}" for name in methods if SOLVERS[name].hessian == "needs")
    return needing + [f"correct: {name}" for name in plan.correct]


def statistics_for(
    model: Model,
    plan: Plan,
    weights: Sequence[Weight],
    calibration: Calibration | None,
    file: str | Path | None = None,
    exact: Mapping[str, str] | None = None,
) -> Statistics | None:
    """What the methods of a plan want to know about activations, from data or from a file; None if it is nothing.

    Raises:
        UsageError: A method needs data and there is none.
        DataError: Data or file do not fit the model.
    """
    wanted = requests(plan, weights, model.ir.graph, exact)
    if calibration is None and file is None:
        if needing := needy(plan):
            raise UsageError(f"{', '.join(needing)} needs calibration data: --calib DATA, or --calib synthetic")
        return None
    if not wanted:
        return None
    if file is not None:
        return load_statistics(file, model, wanted)
    return collected(model, wanted, calibration) if calibration else None
