"""`Grid`: the values that the weights of each group may take, and `GridSpec`: how to lay one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from onnxq.errors import NonFiniteError, number_of
from onnxq.formats import Format, Integer, ScaleType
from onnxq.formats.base import Codes, Floats
from onnxq.formats.scales import BF16, FP16
from onnxq.methods.backend import to_host
from onnxq.methods.chunks import Chunk, chunks
from onnxq.methods.nearest import quantize_finite
from onnxq.methods.solution import Solution


@dataclass(frozen=True)
class GridSpec:
    """How the scales of a weight [A, K, C] lie.

    Attributes:
        formats: Candidates; a solver takes the one that leaves the smallest error, the first of equals.
        block: Neighbours along K that share a scale; the last block of a column may be shorter. None: one scale in all.
        scale_type: What scales are stored as; weights are rounded with the scale as stored.
        symmetric: False: integers with a zero point.
        largest: No code means more: the largest number of the weight's own type.
        salient: Share of the weights that stay in INT8, where the others are binary.
    """

    formats: Sequence[Format]
    block: int | None
    scale_type: ScaleType
    symmetric: bool = True
    largest: float = float(np.finfo(np.float32).max)
    salient: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Scales of one weight, as stored and ready to divide by.

    Attributes:
        format: Of the codes.
        block: Neighbours along K that share a scale, or None for one scale in all.
        stored: [A, G, C] as stored; [1, 1, 1] for one scale in all.
        tensor_scale: One scale over all scales, or None.
        scale: float32 of the shape of `stored`: what a value is multiplied by.
        zero_point: float32 of the same shape, or None.
    """

    format: Format
    block: int | None
    stored: np.ndarray
    tensor_scale: np.float32 | None
    scale: Floats
    zero_point: Floats | None

    def on(self, xp: Any) -> "Grid":
        """The grid with `scale` and `zero_point` as arrays of another module."""
        zero_point = None if self.zero_point is None else xp.asarray(self.zero_point)
        return replace(self, scale=xp.asarray(self.scale), zero_point=zero_point)

    def rescaled(self, scale: Any, spec: GridSpec) -> "Grid":
        """The same grid with other scales, [A, G, C] in either array module, as they can be stored."""
        level = 1.0 if self.tensor_scale is None else float(self.tensor_scale)
        wanted = np.asarray(to_host(scale), np.float64) / level
        if spec.scale_type.rounding == "floor":
            # To the nearest power of two.
            wanted *= np.sqrt(2)
        zero_point = None if self.zero_point is None else to_host(self.zero_point)
        zero = np.float32(0) if zero_point is None else zero_point
        values = self.format.values[np.isfinite(self.format.values)]
        farthest = np.maximum(np.abs(values.min() - zero), np.abs(values.max() - zero))
        stored = _within(_store(wanted, spec), spec.largest / level / farthest.astype(np.float64))
        scale = stored.astype(np.float32) * np.float32(level)
        return replace(self, stored=stored, scale=scale, zero_point=zero_point)

    def quantize(self, weight: Floats, scale: Floats, zero_point: Floats | None) -> tuple[Codes, Floats]:
        """Codes and decoded values of weights to which scales and zero points broadcast, in either array module."""
        units: Floats = weight / scale
        if zero_point is not None:
            units += zero_point
        codes, values = quantize_finite(self.format, units)
        if zero_point is not None:
            values -= zero_point
        values *= scale
        return codes, values

    def quantize_chunk(self, weight: Floats, chunk: Chunk) -> tuple[Codes, float]:
        """Codes of the weights of a chunk, and their squared error."""
        zero_point = None if self.zero_point is None else chunk.scale(self.zero_point)
        codes, values = self.quantize(weight, chunk.scale(self.scale), zero_point)
        values -= weight
        return codes, square(values)

    def solution(self, codes: Codes, squared_error: float, squared_norm: float) -> Solution:
        """The solution that has these codes on this grid."""
        zero_point = None if self.zero_point is None else self.format.encode(self.zero_point)
        return Solution(
            self.format, self.block, codes, self.stored, self.tensor_scale, zero_point, squared_error, squared_norm
        )


def largest_of(dtype: np.dtype[np.generic]) -> float:
    """The largest finite number of a float type."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def square(x: Floats) -> float:
    """Sum of squares; a chunk is short enough for float32 sums, unless the squares leave float32 themselves."""
    flat = x.reshape(-1)
    with np.errstate(over="ignore"):
        total = float(np.dot(flat, flat))
    if not 1e-25 < total < np.inf:
        wide = flat.astype(np.float64)
        total = float(np.dot(wide, wide))
    return total


def extremes(weight: np.ndarray, block: int | None) -> tuple[Floats, Floats]:
    """Smallest and largest weight of each group, both with zero among them: float32 [A, G, C].

    Raises:
        NonFiniteError: A weight is NaN or Inf.
    """
    a, k, c = weight.shape
    shape = (1, 1, 1) if block is None else (a, -(-k // block), c)
    low, high = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for chunk in chunks(weight.shape, block):
        rows = chunk.of(weight).astype(np.float32, copy=False)
        axes = (0, 1, 2, 3) if block is None else 2
        np.minimum(low[chunk.groups], rows.min(axis=axes), out=low[chunk.groups])
        np.maximum(high[chunk.groups], rows.max(axis=axes), out=high[chunk.groups])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = np.argwhere(~np.isfinite(weight.astype(np.float32, copy=False)))
        raise NonFiniteError(number_of(len(bad), "NaN or Inf value"))
    return low, high


def lay(kind: Format, low: Floats, high: Floats, spec: GridSpec) -> Grid:
    """The grid on which every weight between `low` and `high` of its group fits.

    Args:
        kind: Format of the codes.
        low: float32 [A, G, C], not positive.
        high: float32 [A, G, C], not negative.
        spec: Scale type and symmetry.
    """
    scale_type, block, values = spec.scale_type, spec.block, kind.values[np.isfinite(kind.values)]
    if not spec.symmetric and isinstance(kind, Integer):
        stored = _store(spread(high.astype(np.float64) - low, kind.high - kind.low), spec)
        zero = np.clip(np.rint(kind.low - low / stored.astype(np.float32)), kind.low, kind.high).astype(np.float32)
        stored = _within(stored, spec.largest / np.maximum(values.max() - zero, zero - values.min()))
        return Grid(kind, block, stored, None, stored.astype(np.float32), zero)
    absmax, farthest = np.maximum(high, -low), float(np.abs(values).max())
    # A power-of-two scale maps the binade of the largest weight to the highest binade of the format (OCP MX v1.0, 6.3).
    top = kind.max_value if scale_type.rounding == "nearest" else 2.0 ** np.floor(np.log2(kind.max_value))
    # Of a table without zero the smallest numbers are nearest to it.
    empty = 1.0 if (values == 0).any() else scale_type.smallest
    if not scale_type.two_level:
        stored = store_scales(spread(absmax, np.float32(top), empty), spec, farthest)
        return Grid(kind, block, stored, None, stored.astype(np.float32), None)
    # The largest group scale becomes the largest number of the scale type (NVFP4).
    tiny = np.finfo(np.float32).smallest_normal / scale_type.smallest
    widest = float(absmax.max()) if absmax.size else 0.0
    tensor_scale = np.float32(max(widest / float(top) / scale_type.largest, float(tiny)))
    stored = scale_type.store(spread(absmax, np.float32(top) * tensor_scale, empty))
    stored = _within(stored, spec.largest / farthest / float(tensor_scale))
    return Grid(kind, block, stored, tensor_scale, stored.astype(np.float32) * tensor_scale, None)


def store_scales(wanted: np.ndarray, spec: GridSpec, farthest: float) -> np.ndarray:
    """Scales of one level as stored, so that `farthest` times one of them stays finite in the weight's type."""
    return _within(_store(wanted, spec), spec.largest / farthest)


def _store(wanted: np.ndarray, spec: GridSpec) -> np.ndarray:
    """Scales as stored; in bfloat16, which is as long, where those of tiny or huge float32 weights leave float16."""
    scale_type = spec.scale_type
    leaves = (wanted < scale_type.smallest) | (wanted > scale_type.largest)
    if scale_type is FP16 and spec.largest > scale_type.largest and leaves.any():
        scale_type = BF16
    return scale_type.store(wanted)


def _within(stored: np.ndarray, limit: float | np.ndarray) -> np.ndarray:
    """Scales as stored, those above a limit lowered to the next one below it.

    Rounded to nearest, the largest weights of a float16 model would decode to Inf.
    """
    over = stored.astype(np.float64) > limit
    if over.any():
        capped = np.broadcast_to(limit, stored.shape).astype(stored.dtype)
        above = capped.astype(np.float64) > limit
        stored = np.where(over, np.where(above, np.nextafter(capped, np.zeros_like(capped)), capped), stored)
    return stored


def spread(extent: np.ndarray, steps: float | np.float32, empty: float = 1.0) -> np.ndarray:
    """The scale that spreads `extent` over `steps`; `empty` for a group of zeros, which any scale fits."""
    scale = np.full_like(extent, empty)
    np.divide(extent, steps, out=scale, where=extent > 0)
    return scale


def row_groups(k: int, block: int | None) -> list[int]:
    """For each of K rows the group it belongs to."""
    step = k if block is None else block
    return [row // step for row in range(k)]


def group_slices(k: int, block: int | None) -> Iterator[tuple[int, slice]]:
    """Each group of K rows with its number."""
    step = max(1, k if block is None else block)
    for group, start in enumerate(range(0, k, step)):
        yield group, slice(start, min(start + step, k))
