"""Round to nearest: a scale from the largest magnitude of each group, then the nearest code of each weight."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from onnxq.errors import NonFiniteError
from onnxq.formats import Format, Integer, ScaleType
from onnxq.formats.base import Codes, Floats
from onnxq.methods.solution import Solution

# Weights worked on at a time: a chain of array operations over them stays in the cache of a core.
_CHUNK = 1 << 16
_SAMPLED_CHUNKS = 16


@dataclass(frozen=True)
class _Grid:
    """Scales of one weight, ready to divide by: float32 and shaped [A, G, C]."""

    format: Format
    stored: np.ndarray
    tensor_scale: np.float32 | None
    scale: Floats
    zero_point: Floats | None

    def quantize(self, weight: Floats, chunk: "_Chunk") -> tuple[Codes, float]:
        """Codes of the weights of a chunk, and their squared error."""
        scale = chunk.scale(self.scale)
        units: Floats = weight / scale
        if self.zero_point is not None:
            units += chunk.scale(self.zero_point)
        codes, values = self.format.quantize_finite(units)
        if self.zero_point is not None:
            values -= chunk.scale(self.zero_point)
        values *= scale
        values -= weight
        return codes, _square(values)


def solve(
    weight: np.ndarray,
    formats: Sequence[Format],
    *,
    block: int | None,
    scale_type: ScaleType,
    symmetric: bool = True,
) -> Solution:
    """Quantize one weight by rounding to nearest.

    Args:
        weight: [A, K, C], any float type, finite; may be a view of a file.
        formats: Candidates; the one with the smallest squared error is taken, the first of equals. On weights of more
            than a million elements the error that decides is that of evenly spaced parts.
        block: Neighbours along K that share a scale; the last block of a column may be shorter. None: one scale in all.
        scale_type: What scales are stored as; weights are rounded with the scale as stored.
        symmetric: False: integers with a zero point.

    Returns:
        The solution with the smallest squared error.
    """
    low, high = _extremes(weight, block)
    largest = float(ml_dtypes.finfo(weight.dtype).max)  # type: ignore[no-untyped-call]
    grids = [_grid(each, low, high, scale_type, symmetric=symmetric, largest=largest) for each in formats]
    grid = (
        grids[0] if len(grids) == 1 else grids[int(np.argmin([_sampled_error(weight, each, block) for each in grids]))]
    )
    codes = np.empty(weight.shape, np.uint8)
    squared_error = squared_norm = 0.0
    for chunk in _chunks(weight.shape, block):
        exact = chunk.of(weight).astype(np.float32, copy=False)
        chosen, error = grid.quantize(exact, chunk)
        codes[chunk.part] = chosen.reshape(codes[chunk.part].shape)
        squared_error += error
        squared_norm += _square(exact)
    zero_point = None if grid.zero_point is None else grid.format.encode(grid.zero_point)
    return Solution(grid.format, block, codes, grid.stored, grid.tensor_scale, zero_point, squared_error, squared_norm)


def _extremes(weight: np.ndarray, block: int | None) -> tuple[Floats, Floats]:
    """Smallest and largest weight of each group, both with zero among them: float32 [A, G, C].

    Raises:
        NonFiniteError: A weight is NaN or Inf.
    """
    a, k, c = weight.shape
    shape = (1, 1, 1) if block is None else (a, -(-k // block), c)
    low, high = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for chunk in _chunks(weight.shape, block):
        rows = chunk.of(weight).astype(np.float32, copy=False)
        axes = (0, 1, 2, 3) if block is None else 2
        np.minimum(low[chunk.groups], rows.min(axis=axes), out=low[chunk.groups])
        np.maximum(high[chunk.groups], rows.max(axis=axes), out=high[chunk.groups])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = np.argwhere(~np.isfinite(weight.astype(np.float32, copy=False)))
        raise NonFiniteError(f"{len(bad)} NaN or Inf values")
    return low, high


def _grid(kind: Format, low: Floats, high: Floats, scale_type: ScaleType, *, symmetric: bool, largest: float) -> _Grid:
    """Scales (and zero points) that let every weight of a group fit; no code means more than `largest`."""
    values = kind.values[np.isfinite(kind.values)]
    if not symmetric and isinstance(kind, Integer):
        stored = scale_type.store(_or_one(high.astype(np.float64) - low, kind.high - kind.low))
        zero = np.clip(np.rint(kind.low - low / stored.astype(np.float32)), kind.low, kind.high).astype(np.float32)
        stored = _within(stored, largest / np.maximum(values.max() - zero, zero - values.min()))
        return _Grid(kind, stored, None, stored.astype(np.float32), zero)
    absmax, farthest = np.maximum(high, -low), float(np.abs(values).max())
    # A power-of-two scale maps the binade of the largest weight to the highest binade of the format (OCP MX v1.0, 6.3).
    top = kind.max_value if scale_type.rounding == "nearest" else 2.0 ** np.floor(np.log2(kind.max_value))
    if not scale_type.two_level:
        stored = _within(scale_type.store(_or_one(absmax, np.float32(top))), largest / farthest)
        return _Grid(kind, stored, None, stored.astype(np.float32), None)
    # The largest group scale becomes the largest number of the scale type (NVFP4).
    tiny = np.finfo(np.float32).smallest_normal / scale_type.smallest
    widest = float(absmax.max()) if absmax.size else 0.0
    tensor_scale = np.float32(max(widest / float(top) / scale_type.largest, float(tiny)))
    stored = scale_type.store(_or_one(absmax, np.float32(top) * tensor_scale))
    stored = _within(stored, largest / farthest / float(tensor_scale))
    return _Grid(kind, stored, tensor_scale, stored.astype(np.float32) * tensor_scale, None)


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


def _or_one(extent: np.ndarray, steps: float | np.float32) -> np.ndarray:
    """The scale that spreads `extent` over `steps`; 1 for a group of zeros, which any scale fits."""
    scale = np.ones_like(extent)
    np.divide(extent, steps, out=scale, where=extent > 0)
    return scale


def _sampled_error(weight: np.ndarray, grid: _Grid, block: int | None) -> float:
    """Squared error of a grid on evenly spaced chunks; on all of them where the weight has few."""
    every = list(_chunks(weight.shape, block))
    sampled = every[:: -(-len(every) // _SAMPLED_CHUNKS)]
    return sum(grid.quantize(chunk.of(weight).astype(np.float32, copy=False), chunk)[1] for chunk in sampled)


def _square(x: Floats) -> float:
    """Sum of squares; a chunk is short enough for float32 sums, unless the squares leave float32 themselves."""
    flat = x.reshape(-1)
    with np.errstate(over="ignore"):
        total = float(np.dot(flat, flat))
    if not 1e-25 < total < np.inf:
        wide = flat.astype(np.float64)
        total = float(np.dot(wide, wide))
    return total


@dataclass(frozen=True)
class _Chunk:
    """Whole groups, or a part of one: weight[part] is rows of the groups scale[groups]."""

    part: tuple[slice, slice]
    groups: tuple[slice, slice]
    rows: int

    def of(self, weight: np.ndarray) -> np.ndarray:
        """The weights, as [a, groups, rows, C]."""
        part = weight[self.part]
        return part.reshape(part.shape[0], -1, self.rows, part.shape[2])

    def scale(self, grid: Floats) -> Floats:
        """Their scales (or zero points), as [a, groups, 1, C]."""
        return grid[self.groups][:, :, None]


def _chunks(shape: tuple[int, ...], block: int | None) -> Iterator[_Chunk]:
    """Cut [A, K, C] into pieces that fit in the cache and never hold parts of two groups."""
    a, k, c = shape
    if not (a and k and c):
        return
    step = min(block or k, k)
    many = max(1, _CHUNK // (k * c))
    for top in range(0, a, many):
        matrices = slice(top, min(top + many, a))
        for part, groups, rows in _ranges(k, step, max(1, _CHUNK // c)):
            if block is None:
                yield _Chunk((matrices, part), (slice(0, 1), slice(0, 1)), rows)
            else:
                yield _Chunk((matrices, part), (matrices, groups), rows)


def _ranges(k: int, step: int, most: int) -> Iterator[tuple[slice, slice, int]]:
    """Cut K rows in groups of `step` into ranges of about `most` rows: (rows, groups, rows of each group)."""
    whole = k // step * step
    if step <= most:
        stride = most // step * step
        for start in range(0, whole, stride):
            end = min(start + stride, whole)
            yield slice(start, end), slice(start // step, end // step), step
    else:
        for start in range(0, whole, step):
            for inner in range(start, start + step, most):
                end = min(inner + most, start + step)
                yield slice(inner, end), slice(start // step, start // step + 1), end - inner
    for start in range(whole, k, most):
        end = min(start + most, k)
        yield slice(start, end), slice(whole // step, whole // step + 1), end - start
