"""Sparse outliers: a few weights stand beside the others, so that these share smaller ranges.

A weight is the sum of a sparse matrix of sixteen-bit floats and the rest, which any solver quantizes: where an outlier
was it has a number near zero (the side matrix of SpQR, arXiv 2306.03078, but chosen by magnitude, as in PreQuant, arXiv
2306.00014).
"""

import itertools
from collections.abc import Iterator

import numpy as np

from onnxq.formats.base import Floats
from onnxq.formats.sparse import half_of
from onnxq.methods.grid import GridSpec, extremes
from onnxq.methods.solution import Outliers

# Of a group, in outliers that it has on average: no more are thought of.
_MOST, _AT_LEAST = 4, 8
_ELEMENTS = 1 << 22


def count(size: int, share: float) -> int:
    """How many of so many weights are outliers."""
    return round(size * share)


def take(weight: np.ndarray, share: float, spec: GridSpec) -> tuple[Outliers, Floats]:
    """Take out of a weight what narrows the ranges of its groups most.

    Args:
        weight: [A, K, C], any float type.
        share: Of all weights, above 0 and at most 1.
        spec: How the rest is quantized.

    Returns:
        The outliers, and the rest of the weight, float32: both add up to it.

    Raises:
        NonFiniteError: A weight is NaN or Inf.
    """
    extremes(weight, None)
    rest = weight.astype(np.float32)
    flat, many = rest.reshape(-1), count(weight.size, share)
    positions = np.arange(0)
    if many:
        gain = _gains(rest, share, spec).reshape(-1)
        positions = np.sort(np.argpartition(gain, flat.size - many)[flat.size - many :])
    values = half_of(flat[positions]).astype(np.float32)
    flat[positions] -= values
    return Outliers(positions.astype(np.int64), values), rest


def _gains(weight: Floats, share: float, spec: GridSpec) -> Floats:
    """By how much each weight, taken out, lets the squared range of its group fall: [A, K, C].

    A grid with zero points has two ends, each of which falls by itself.
    """
    if spec.block is None:
        return np.abs(weight)
    gains = np.empty_like(weight)
    for part in _parts(weight.shape):
        ends = (
            (np.abs(weight[part]),) if spec.symmetric else (np.maximum(weight[part], 0), np.maximum(-weight[part], 0))
        )
        gains[part] = sum(_falls(end, share, spec.block) for end in ends)
    return gains


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice]]:
    """Whole columns of [A, K, C], so many that what is thought of them fits in memory."""
    a, k, c = shape
    columns = max(1, _ELEMENTS // k)
    many = max(1, columns // c)
    for top, left in itertools.product(range(0, a, many), range(0, c, columns)):
        yield slice(top, top + many), slice(None), slice(left, left + columns)


def _falls(magnitude: Floats, share: float, block: int) -> Floats:
    """The fall of the square of the largest number of each group, for each number that is taken for it.

    Where several large ones lie together, none of them helps alone: each counts as a part of the best run from it down.
    """
    a, k, c = magnitude.shape
    block = min(block, k)
    padded = np.pad(magnitude, ((0, 0), (0, -k % block), (0, 0)))
    groups = padded.reshape(a, -1, block, c)
    most = min(block, max(_AT_LEAST, int(_MOST * share * block)))
    order = np.argpartition(-groups, most - 1, axis=2)[:, :, :most]
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(groups, order, 2), axis=2, kind="stable"), 2)
    squares = np.square(np.take_along_axis(groups, order, 2))
    gains = np.zeros_like(squares)
    for run in range(1, most):
        np.maximum(gains[:, :, :-run], (squares[:, :, :-run] - squares[:, :, run:]) / run, out=gains[:, :, :-run])
    # Nothing is taken before what is larger.
    np.minimum.accumulate(gains, axis=2, out=gains)
    made = np.zeros_like(groups)
    np.put_along_axis(made, order, gains, 2)
    return made.reshape(padded.shape)[:, :k]
