"""Static ranges of activations: how much of what was seen a format's values cover, from a histogram."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxq.formats import Format, Integer

Array = npt.NDArray[np.float64]
Method = Literal["absmax", "percentile", "entropy", "mse"]
Mask = npt.NDArray[np.bool_]

# Sixteenths of an octave: from a quarter more than the largest magnitude seen to a thirty-second of it.
_OCTAVE, _WIDER, _NARROWER = 16, 5, 80


def scale_of(low: Array, high: Array, kind: Format, *, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero point with which a format covers a range.

    Args:
        low: The smallest value of each range, any shape.
        high: The largest.
        kind: An integer where not symmetric.
        symmetric: The zero point is 0.

    Returns:
        Scales, positive, and zero points, integral; of the shape of `low`.
    """
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    tiny = float(np.finfo(np.float32).smallest_normal)
    if symmetric or not isinstance(kind, Integer):
        magnitude = np.maximum(-low, high)
        # What was always zero stays zero with any scale.
        return np.where(magnitude > 0, np.maximum(magnitude / kind.max_value, tiny), 1.0), np.zeros_like(magnitude)
    span = high - low
    scale = np.where(span > 0, np.maximum(span / (kind.high - kind.low), tiny), 1.0)
    return scale, np.clip(kind.low - np.rint(low / scale), kind.low, kind.high)


def round_to(x: Array, scale: Array, zero_point: Array, kind: Format) -> Array:
    """What a pair of Q and DQ makes of numbers."""
    units = x / scale
    if isinstance(kind, Integer):
        return (np.clip(np.rint(units) + zero_point, kind.low, kind.high) - zero_point) * scale
    return kind.quantize_finite(units.astype(np.float32))[1] * scale


def find_range(
    method: Method, counts: Array, edges: Array, kind: Format, *, symmetric: bool, percentile: float = 99.99
) -> tuple[float, float]:
    """The part of a histogram that a format shall cover.

    Args:
        method: `percentile`: so many of the values; `mse`: where rounding and clipping leave the smallest mean squared
            error; `entropy`: where the distribution changes least (Kullback-Leibler divergence, as Migacz, "8-bit
            inference with TensorRT", GTC 2017, for any format); `absmax`: all.
        counts: [n], values in each bin.
        edges: [n + 1], ascending.
        kind: The format.
        symmetric: The range lies around zero.
        percentile: In percent.

    Returns:
        Its smallest and largest value.
    """
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    if method == "absmax" or not counts.sum() or low == high:
        return low, high
    if method == "percentile":
        return _percentile(counts, edges, percentile, symmetric=symmetric)
    centers = (edges[:-1] + edges[1:]) / 2
    losses = {"mse": _squared_error, "entropy": _divergence}
    best, found = np.inf, (low, high)
    for factor in _factors():
        candidate = (low * factor, high * factor)
        scale, zero_point = scale_of(np.asarray(candidate[0]), np.asarray(candidate[1]), kind, symmetric=symmetric)
        rounded = round_to(centers, scale, zero_point, kind)
        loss = losses[method](counts, rounded - centers, rounded, (centers >= candidate[0]) & (centers <= candidate[1]))
        if loss < best:
            best, found = loss, candidate
    return found


def _factors() -> Iterator[float]:
    """The whole range first, so that it wins where nothing is better."""
    yield 1.0
    for step in range(-_WIDER, _NARROWER + 1):
        if step:
            yield 2.0 ** (-step / _OCTAVE)


def _percentile(counts: Array, edges: Array, percentile: float, *, symmetric: bool) -> tuple[float, float]:
    share = percentile / 100
    if symmetric:
        # The edge of a bin that lies farther from zero.
        reach = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
        order = np.argsort(reach, kind="stable")
        seen = np.cumsum(counts[order])
        limit = float(reach[order][np.searchsorted(seen, share * seen[-1])])
        return -limit, limit
    seen = np.cumsum(counts)
    tail = (1 - share) / 2 * seen[-1]
    first = int(np.searchsorted(seen, tail, side="right"))
    last = int(np.searchsorted(seen, seen[-1] - tail))
    return min(float(edges[first]), 0.0), max(float(edges[min(last, len(counts) - 1) + 1]), 0.0)


def _squared_error(counts: Array, error: Array, _rounded: Array, _inside: Mask) -> float:
    return float((counts * error**2).sum())


def _divergence(counts: Array, _error: Array, rounded: Array, inside: Mask) -> float:
    """How far the values of a histogram are from being spread evenly over all bins of their code.

    What lies beyond the range counts where it is clipped to in the one distribution, and not at all in the other.
    """
    first, last = np.flatnonzero(inside)[[0, -1]]
    codes = np.unique(rounded[inside], return_inverse=True)[1]
    before, filled = counts[inside], counts[inside] > 0
    spread = np.bincount(codes, before) / np.maximum(np.bincount(codes, filled), 1)
    after = np.where(filled, spread[codes], 0.0)
    clipped = before.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last + 1 :].sum()
    p, here = clipped / clipped.sum(), clipped > 0
    # Bins that only clipped values fill would make the divergence infinite.
    q = np.maximum(after / max(after.sum(), 1e-30), 1e-12)
    return float((p[here] * np.log(p[here] / q[here])).sum())
