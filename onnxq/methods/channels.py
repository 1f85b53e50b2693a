"""Static grids for the channels of keys and values: where a channel lies, and how much of its range is kept."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.formats import Format, Integer

Array = NDArray[np.float64]

# Where to clip a Gaussian for the smallest squared error, in standard deviations, by the bits of the integers
# (Banner et al. 2019, arXiv 1810.05723, ACIQ). With more bits a step is small and what lies outside costs most, so that
# the range is widened instead, for what calibration has not seen.
_CLIP = {2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93}
_HEADROOM = 1.25


@dataclass(frozen=True)
class Range:
    """What calibration saw of channels, [heads, size] each."""

    low: Array
    high: Array
    mean: Array
    deviation: Array


def channel_grid(seen: Range, kind: Format, *, centred: bool = True) -> tuple[Array, Array]:
    """Offset and scale, [heads, size] each: a number becomes (x - offset) / scale in the units of the format.

    Args:
        seen: Of each channel.
        kind: Integers of few bits are clipped where a Gaussian would be, on each side where that is inside the
            range; floats keep the range, since their steps near zero do not depend on it.
        centred: Put the middle of the range at the middle of the format; else the offset is zero.
    """
    low, high = seen.low, seen.high
    if isinstance(kind, Integer) and kind.bits in _CLIP:
        clip = _CLIP[kind.bits] * seen.deviation
        low, high = np.maximum(low, seen.mean - clip), np.minimum(high, seen.mean + clip)
    middle = (low + high) / 2 if centred else np.zeros_like(low)
    reach = np.maximum(high - middle, middle - low)
    if not isinstance(kind, Integer):
        return middle, _positive(reach * _HEADROOM) / float(np.nanmax(kind.values))
    reach = _positive(reach if kind.bits in _CLIP else reach * _HEADROOM)
    if not centred:
        return middle, reach / kind.high
    scale = 2 * reach / (kind.high - kind.low)
    # The integers reach one further below zero than above.
    return middle + scale / 2, scale


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
