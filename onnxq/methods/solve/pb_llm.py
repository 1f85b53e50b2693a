"""PB-LLM (arXiv 2310.00034): a few salient weights in INT8, all others binary. Experimental: GPTQ does better in less.

What is not salient is mu + alpha or mu - alpha: mu is the mean of its group and alpha the mean distance from it, both
over binary weights alone (the published code takes salient ones for zeros there, which makes both too small). A weight
is salient by its square times what an error that is left in its row costs, which is 1 / U_kk^2 of GPTQ's factor U.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.formats.base import Codes, Floats
from onnxq.methods.backend import to_host
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec, extremes, group_slices, largest_of, row_groups, spread, square, store_scales
from onnxq.methods.solution import Salient, Solution
from onnxq.methods.solve.gptq import DAMPING, Cost, round_in_turn

_LARGEST = np.float32(127)
# How often all is rounded; mu and alpha are laid anew for what was rounded.
_TURNS = 3


def salient_count(size: int, share: float) -> int:
    """How many of so many weights are salient: at least one, and not all."""
    return min(max(round(size * share), 1), max(size - 1, 1))


def solve(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None = None, *, xp: Any = np) -> Solution:
    """Quantize one weight.

    Args:
        weight: [A, K, C], any float type, finite.
        spec: `salient` is the share of weights in INT8; its first format is that of the others, binary.
        curvature: Of the layer's inputs (A is 1): rows are rounded one after the other, as GPTQ does. None: all are
            rounded to nearest.
        xp: Array module that computes.

    Raises:
        NonFiniteError: A weight is NaN or Inf.
    """
    extremes(weight, None)
    exact = weight.astype(np.float32)
    if curvature is None:
        grid = _Grid.lay(exact, _largest(np.square(exact), spec.salient), spec)
        codes, values = grid.round(exact)
    else:
        grid, codes, values = _in_turn(exact[0], spec, curvature, xp)
    error, mask = values - exact, grid.mask
    salient = Salient(mask, codes[mask].view(np.int8), grid.salient_scale, grid.mean)
    binary = np.where(mask, np.uint8(0), codes)
    return Solution(
        spec.formats[0], spec.block, binary, grid.alpha, None, None, square(error), square(exact), salient=salient
    )


def _largest(saliency: np.ndarray, share: float) -> np.ndarray:
    """Where the largest lie: bool of the same shape."""
    first = saliency.size - salient_count(saliency.size, share)
    mask = np.zeros(saliency.size, bool)
    mask[np.argpartition(saliency.reshape(-1), first)[first:]] = True
    return mask.reshape(saliency.shape)


def _in_turn(weight: Floats, spec: GridSpec, curvature: Curvature, xp: Any) -> "tuple[_Grid, Codes, Floats]":
    """The best of some turns of a weight [K, C]: codes and values [1, K, C]."""
    order, feedback, costs = curvature.feedback(act_order=True, damping=DAMPING, xp=xp)
    back, mask = np.argsort(order), _largest(np.square(weight) * costs[:, None], spec.salient)
    ordered, feedback = xp.asarray(weight[order]), xp.asarray(feedback)
    cost = Cost(ordered, feedback, xp.asarray(costs[order]), xp)
    found, seen = [], weight
    for _ in range(_TURNS):
        grid = _Grid.lay(seen[None], mask[None], spec)
        codes, values = round_in_turn(ordered, grid.rows(order, xp), feedback, xp)
        found.append((cost.of(values), grid, to_host(codes)[back][None], to_host(values)[back][None]))
        seen = (seen + to_host(ordered + cost.carried(values))[back]) / 2
    return min(found, key=lambda each: each[0])[1:]


@dataclass(frozen=True)
class _Grid:
    """What the weights of each group may be.

    Attributes:
        mask: bool [A, K, C], where INT8 is.
        block: Neighbours along K that share alpha and mean, or None for one of each in all.
        alpha: [A, G, C] as stored.
        mean: Of its shape and type.
        salient_scale: [A, 1, C] as stored: of INT8.
    """

    mask: np.ndarray
    block: int | None
    alpha: np.ndarray
    mean: np.ndarray
    salient_scale: np.ndarray

    @classmethod
    def lay(cls, weight: Floats, mask: np.ndarray, spec: GridSpec) -> "_Grid":
        """The grid that suits numbers [A, K, C]."""
        a, k, c = weight.shape
        axes, groups = ((0, 1, 2), 1) if spec.block is None else ((1,), -(-k // spec.block))
        alpha, mean = np.zeros((2, *((1, 1, 1) if spec.block is None else (a, groups, c))), np.float32)
        for group, rows in group_slices(k, spec.block):
            part, kept = weight[:, rows], ~mask[:, rows]
            many = np.maximum(kept.sum(axis=axes, keepdims=True), 1)
            middle = (part * kept).sum(axis=axes, keepdims=True) / many
            distance = np.abs(part - middle) * kept
            mean[:, group : group + 1] = middle
            alpha[:, group : group + 1] = distance.sum(axis=axes, keepdims=True) / many
        absmax = np.abs(weight * mask).max(axis=1, keepdims=True)
        stored = store_scales(alpha, spec, 1.0)
        limit = largest_of(stored.dtype)
        means = np.clip(mean, -limit, limit).astype(stored.dtype)
        return cls(mask, spec.block, stored, means, store_scales(spread(absmax, _LARGEST), spec, float(_LARGEST)))

    def round(self, weight: Floats) -> tuple[Codes, Floats]:
        """The nearest value of each number [A, K, C]."""
        groups = row_groups(weight.shape[1], self.block)
        alpha, mean = (each.astype(np.float32)[:, groups] for each in (self.alpha, self.mean))
        return _nearest(weight, self.mask, alpha, mean, self.salient_scale.astype(np.float32), np)

    def rows(self, order: np.ndarray, xp: Any) -> Any:
        """What `round_in_turn` calls for one row of [K, C] at a time, in an order."""
        groups = np.asarray(row_groups(len(order), self.block), np.intp)[order].tolist()
        mask, scale = xp.asarray(self.mask[0][order]), xp.asarray(self.salient_scale[0, 0].astype(np.float32))
        alpha, mean = (xp.asarray(each[0].astype(np.float32)) for each in (self.alpha, self.mean))
        return lambda row, x: _nearest(x, mask[row], alpha[groups[row]], mean[groups[row]], scale, xp)


def _nearest(x: Any, mask: Any, alpha: Any, mean: Any, scale: Any, xp: Any) -> tuple[Codes, Floats]:
    """Codes (a sign, or the bits of an INT8) and their values, of numbers to which all else broadcasts."""
    whole = xp.clip(xp.rint(x / scale), -_LARGEST, _LARGEST)
    above = x >= mean
    codes = xp.where(mask, whole.astype(xp.int8).view(xp.uint8), above.astype(xp.uint8))
    return codes, xp.where(mask, whole * scale, xp.where(above, alpha, -alpha) + mean)
