"""Static grids for the channels of keys and values: where a channel lies, and how much of its range is kept."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.formats import Format, Integer

Array = NDArray[np.float64]

# With many bits a step is small and what lies outside costs most, so that the range is widened for what calibration has
# not seen. Below, steps cost most, and a grid is fitted to the distribution.
_MANY_BITS = 8
_HEADROOM = 1.25
# A fit begins with the best of the ranges whose ends are drawn in by these factors, and settles in so many rounds.
_STARTS = tuple(2.0 ** (-step / 8) for step in range(12))
_ROUNDS = 12


@dataclass(frozen=True)
class Range:
    """What calibration saw of channels.

    Attributes:
        low: The smallest number of each channel, [heads, size].
        high: The largest.
        counts: How many lay in each of so many equal parts of the range, [heads, size, bins]; needed by `is_fitted`.
    """

    low: Array
    high: Array
    counts: Array | None = None


def is_fitted(kind: Format) -> bool:
    """Whether the grid of a format follows the distribution, and not the range alone."""
    return kind.bits < _MANY_BITS


def channel_grid(seen: Range, kind: Format, *, centred: bool = True) -> tuple[Array, Array]:
    """Offset and scale, [heads, size] each: a number becomes (x - offset) / scale in the units of the format.

    With few bits they are those of the smallest squared error: of ranges whose ends are drawn in the best is taken;
    then numbers are rounded, offset and scale become those of the straight line from codes to numbers (least squares),
    and so on. With many bits they keep a quarter of room beyond the range.

    Args:
        seen: Of each channel.
        kind: An integer or a minifloat.
        centred: Put the offset where the error is smallest, or at the middle of the range; else it is zero.
    """
    if seen.counts is None or not is_fitted(kind):
        return _covering(seen.low, seen.high, kind, _HEADROOM, centred=centred)
    places = (np.arange(seen.counts.shape[2]) + 0.5) / seen.counts.shape[2]
    x = seen.low[..., None] + (seen.high - seen.low)[..., None] * places
    weight = seen.counts / seen.counts.sum(axis=2, keepdims=True)
    anchor = (weight * x).sum(axis=2) if centred else np.zeros_like(seen.low)

    def fit(grid: tuple[Array, Array]) -> _Fit:
        return _Fit(*grid, *_rounded(x, weight, *grid, kind))

    starts = itertools.product(_STARTS, _STARTS) if centred else zip(_STARTS, _STARTS, strict=True)
    ranges = ((anchor + (seen.low - anchor) * low, anchor + (seen.high - anchor) * high) for low, high in starts)
    best = functools.reduce(_Fit.or_better, (fit(_covering(*each, kind, 1.0, centred=centred)) for each in ranges))
    for _ in range(_ROUNDS):
        best = best.or_better(fit(_line(best, x, weight, centred=centred)))
    return best.offset, best.scale


@dataclass(frozen=True)
class _Fit:
    """A grid, what it rounds numbers to in its units, [heads, size, bins], and the mean squared error."""

    offset: Array
    scale: Array
    units: Array
    error: Array

    def or_better(self, other: "_Fit") -> "_Fit":
        """Of each channel the better one."""
        better = other.error < self.error
        return _Fit(
            np.where(better, other.offset, self.offset),
            np.where(better, other.scale, self.scale),
            np.where(better[..., None], other.units, self.units),
            np.where(better, other.error, self.error),
        )


def _covering(low: Array, high: Array, kind: Format, room: float, *, centred: bool) -> tuple[Array, Array]:
    """The grid whose ends lie `room` times as far from its middle as those of a range."""
    middle = (low + high) / 2 if centred else np.zeros_like(low)
    reach = _positive(np.maximum(high - middle, middle - low)) * room
    if not isinstance(kind, Integer) or not centred:
        return middle, reach / float(np.nanmax(kind.values))
    scale = 2 * reach / (kind.high - kind.low)
    # The integers reach one further below zero than above.
    return middle + scale / 2, scale


def _rounded(x: Array, weight: Array, offset: Array, scale: Array, kind: Format) -> tuple[Array, Array]:
    """Numbers in units of the format, and what that leaves of squared error."""
    units = (x - offset[..., None]) / scale[..., None]
    if isinstance(kind, Integer):
        units = np.clip(np.rint(units), kind.low, kind.high)
    else:
        units = kind.quantize_finite(units.astype(np.float32))[1].astype(np.float64)
    return units, (weight * (units * scale[..., None] + offset[..., None] - x) ** 2).sum(axis=2)


def _line(fit: _Fit, x: Array, weight: Array, *, centred: bool) -> tuple[Array, Array]:
    """Offset and scale of the line through numbers over their units; as they are where it does not rise."""
    mean_units, mean = ((weight * each).sum(axis=2) if centred else np.zeros_like(fit.scale) for each in (fit.units, x))
    away = fit.units - mean_units[..., None]
    spread = (weight * away**2).sum(axis=2)
    slope = (weight * away * x).sum(axis=2) / np.where(spread > 0, spread, 1)
    scale = np.where(slope > 0, slope, fit.scale)
    return np.where(slope > 0, mean - scale * mean_units, fit.offset), scale


def smoothing(seen: Range) -> tuple[Array, Array]:
    """Offset and factor, [heads, size] each; (x - offset) / factor has channels that are closer to one size.

    The factor is the square root of the reach, which moves half of the difference between channels out of the way of a
    scale that they share, as SmoothQuant's exponent of 0.5 does (arXiv 2211.10438).
    """
    middle = (seen.low + seen.high) / 2
    factor = np.sqrt(_positive((seen.high - seen.low) / 2))
    return middle, factor / factor.mean(axis=1, keepdims=True)


def _positive(reach: Array) -> Array:
    """A channel that never moved is as wide as the widest."""
    return np.where(reach > 0, reach, max(float(reach.max()), 1.0))
