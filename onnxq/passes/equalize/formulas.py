"""What each method makes of the statistics of one activation and of the weights that it is multiplied with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.formats import Minifloat, get_format
from onnxq.methods.curvature import Curvature
from onnxq.methods.equalize import aweq, awq, disassemble, shift, smooth
from onnxq.methods.equalize.ties import tied
from onnxq.methods.solve import rtn
from onnxq.passes.equalize.fold import Folding, Picked
from onnxq.passes.equalize.places import Place
from onnxq.passes.form import grid_spec
from onnxq.passes.step import Refusal
from onnxq.recipes import Aweq, Awq, Disassemble, QuantSpec, Shift, Smooth
from onnxq.statistics.reductions import Kind
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import Axis

# Of eight bits: what SmoothQuant is for.
_LEVELS = 127


@dataclass(frozen=True)
class Seen:
    """What a formula can look at.

    Attributes:
        place: The activation.
        statistics: Of the model.
        folding: What was scaled before.
        specs: How each product's weight will be quantized; those that stay float are not among them.
    """

    place: Place
    statistics: Statistics
    folding: Folding
    specs: Mapping[ir.Node, QuantSpec]

    @property
    def classes(self) -> np.ndarray:
        """[K] channels that share a scale."""
        return np.arange(self.place.channels) if self.place.walk is None else self.place.walk.classes

    def get(self, kind: Kind) -> np.ndarray:
        """One answer about the activation."""
        return self.statistics.get(self.place.name, kind, Axis(self.place.axis))

    def mean(self, kind: Kind) -> np.ndarray:
        """One sum over the rows of the activation, divided by their number."""
        return self.get(kind) / max(self.statistics.rows(self.place.name, Axis(self.place.axis)), 1)

    def rows(self) -> dict[ir.Node, np.ndarray]:
        """All weights as matrices of one row a channel, [K, C]; rows that belong to one channel lie side by side."""
        return {
            node: self._matrix(node, labels)
            for node, labels in (self.place.walk.rows if self.place.walk else {}).items()
        }

    def _matrix(self, node: ir.Node, labels: np.ndarray) -> np.ndarray:
        weight, site = self.folding.product(node)
        array = self.folding.weight(node)
        k = self.place.channels
        if site.layout.flatten:
            groups = len(labels) // weight.shape[1]
            array = array.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2).reshape(len(labels), -1)
        else:
            array = np.moveaxis(array, site.layout.reduction, 0).reshape(len(labels), -1)
        if np.array_equal(labels, np.arange(k)):
            return array
        if len(labels) != k or not np.array_equal(np.sort(labels), np.arange(k)):
            raise Refusal("several rows of a weight, or none, belong to one channel")
        return array[np.argsort(labels)]


@dataclass(frozen=True)
class Found:
    """Scales for one activation.

    Attributes:
        scales: [K] what it is divided by.
        words: How it was done, for the report.
        picked: Channels that its products read instead, or None.
    """

    scales: np.ndarray
    words: str = ""
    picked: Picked | None = None


@dataclass(frozen=True)
class Formula:
    """A method.

    Attributes:
        kinds: What it asks about the activation.
        find: (step, what it can look at) -> scales; a `Refusal` says why there are none.
    """

    kinds: tuple[Kind, ...]
    find: Callable[[Any, Seen], Found]


def _smooth(step: Smooth, seen: Seen) -> Found:
    absmax = tied(seen.get("channel_absmax"), seen.classes)
    weights = list(seen.rows().values())
    weight = tied(np.max([np.abs(each).max(axis=1) for each in weights], axis=0), seen.classes)
    candidates = {alpha: smooth.scales(absmax, weight, alpha) for alpha in step.alpha}
    if len(candidates) == 1:
        return Found(candidates[step.alpha[0]])
    energy = seen.mean("channel_square_sum")
    errors = {a: smooth.expected_error(each, absmax, energy, weights, _LEVELS) for a, each in candidates.items()}
    best = min(errors, key=lambda alpha: errors[alpha])
    return Found(candidates[best], f", alpha {best:g}")


def _aweq(_step: Aweq, seen: Seen) -> Found:
    high, low = tied(seen.get("channel_max"), seen.classes), -tied(-seen.get("channel_min"), seen.classes)
    weights = list(seen.rows().values())
    top = tied(np.max([each.max(axis=1) for each in weights], axis=0), seen.classes)
    bottom = -tied(-np.min([each.min(axis=1) for each in weights], axis=0), seen.classes)
    return Found(aweq.scales(high - low, top - bottom))


def _awq(_step: Awq, seen: Seen) -> Found:
    weights = seen.rows()
    if any(len(seen.folding.product(node)[0].shape) != 2 for node in weights):
        raise Refusal("a convolution")
    chosen = [node for node in weights if node in seen.specs]
    if not chosen:
        raise Refusal("its weights stay float")
    curvature = Curvature(seen.get("hessian"))
    quantizers = [_rounding(seen, node) for node in chosen]
    scales, exponent = awq.scales(
        seen.mean("channel_abs_sum"), curvature, [weights[node] for node in chosen], quantizers, seen.classes
    )
    if exponent == 0:
        raise Refusal("no scales make the rounded weights better")
    return Found(scales)


def _rounding(seen: Seen, node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding to nearest as the recipe will do it, for a weight [K, C]."""
    grid = grid_spec(seen.folding.product(node)[0], seen.specs[node])
    return lambda array: rtn.solve(array[None], grid).decode()[0]


def _shift(step: Shift, seen: Seen) -> Found:
    kind = get_format(step.format)
    if not isinstance(kind, Minifloat):
        raise ValueError(step.format)
    absmax = tied(seen.get("channel_absmax"), seen.classes)
    return Found(shift.scales(absmax, kind.exponent_bits))


def _disassemble(step: Disassemble, seen: Seen) -> Found:
    if seen.place.axis != -1 or not seen.place.is_direct:
        raise Refusal("a product reads it in another shape")
    weights = list(seen.rows().values())
    absmax = tied(seen.get("channel_absmax"), seen.classes)
    square = sum(np.square(each, dtype=np.float64).sum(axis=1) for each in weights)
    levels = 2 ** (step.bits - 1) - 1
    count = disassemble.copies(
        absmax, seen.mean("channel_square_sum"), np.asarray(square), step.ratio, levels, seen.classes
    )
    added = int((count - 1).sum())
    if not added:
        raise Refusal("no channel reaches far beyond the others")
    merged = np.empty((0, 2), np.int64)
    if step.assemble:
        free = (count == 1) & np.isin(seen.classes, np.flatnonzero(np.bincount(seen.classes) == 1))
        merged = disassemble.pairs(seen.get("hessian"), weights, free, added)
    scales = count.astype(np.float64)
    scales[merged] = 2
    kept = np.setdiff1d(np.arange(len(count)), merged)
    picked = Picked(np.repeat(kept, count[kept]), merged)
    words = f", {added} of {len(count)} channels added" + (f", {len(merged)} merged" if len(merged) else "")
    return Found(scales, words, picked)


def formula_of(step: Any) -> Formula:
    """The formula of a step."""
    match step:
        case Smooth():
            several: tuple[Kind, ...] = ("channel_square_sum",) if len(step.alpha) > 1 else ()
            return Formula(("channel_absmax", *several), _smooth)
        case Aweq():
            return Formula(("channel_min", "channel_max"), _aweq)
        case Awq():
            return Formula(("channel_abs_sum", "hessian"), _awq)
        case Shift():
            return Formula(("channel_absmax",), _shift)
        case Disassemble():
            also: tuple[Kind, ...] = ("hessian",) if step.assemble else ()
            return Formula(("channel_absmax", "channel_square_sum", *also), _disassemble)
        case _:
            raise ValueError(step)
