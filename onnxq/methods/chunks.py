"""Pieces of a weight that stay in the cache of a core while a chain of array operations passes over them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxq.formats.base import Floats
from onnxq.methods.backend import CPU_CHUNK


@dataclass(frozen=True)
class Chunk:
    """Whole groups, or a part of one.

    Attributes:
        part: The weights are `weight[part]`.
        groups: Their scales are `scale[groups]`.
        rows: Of each group.
    """

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


def chunks(shape: tuple[int, ...], block: int | None, size: int = CPU_CHUNK) -> Iterator[Chunk]:
    """Cut [A, K, C] into pieces of about `size` elements; each holds whole groups or a part of one."""
    a, k, c = shape
    if not (a and k and c):
        return
    step = min(block or k, k)
    many = max(1, size // (k * c))
    for top in range(0, a, many):
        matrices = slice(top, min(top + many, a))
        for part, groups, rows in _ranges(k, step, max(1, size // c)):
            if block is None:
                yield Chunk((matrices, part), (slice(0, 1), slice(0, 1)), rows)
            else:
                yield Chunk((matrices, part), (matrices, groups), rows)


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
