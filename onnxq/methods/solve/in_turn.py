"""Round rows one after the other, each told by what those before it were moved.

GPTQ and coordinate descent are one loop: a row is rounded where it should be by itself, plus a pull, the sum of the
moves of rows before it at what they mean for it. Rows go in blocks, between which matrix products bring in the moves of
all others. These add up in float64, so that the order in which a BLAS adds decides no code; within a block the order is
fixed. On a GPU a block is one kernel (`nearest.cu`), whose codes are those of numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxq.formats.base import Codes, Floats
from onnxq.methods.grid import Grid
from onnxq.methods.nearest import Table, kernel

BLOCK = 64
"""Rows between two matrix products."""
_THREADS = 32

QuantizeRow = Callable[[int, Any], tuple[Any, Any]]
"""Codes and values of one row, by its number and what is to be rounded."""


@dataclass(frozen=True)
class Rows:
    """Rounds a row to its part of a grid.

    Attributes:
        grid: On the device of the rows; A is 1.
        groups: Whose scale each row has.
    """

    grid: Grid
    groups: list[int]

    def __call__(self, row: int, x: Any) -> tuple[Codes, Floats]:
        """See `QuantizeRow`."""
        group, grid = self.groups[row], self.grid
        return grid.quantize(x, grid.scale[0, group], None if grid.zero_point is None else grid.zero_point[0, group])

    @cached_property
    def table(self) -> Table:
        """By which a GPU rounds."""
        return Table.of(self.grid.format)


def round_block(
    target: Any, pull: Any, coupling: Any, quantize: QuantizeRow, first: int, xp: Any
) -> tuple[Codes, Floats]:
    """Codes and values of the rows of a block, both [n, C].

    Args:
        target: float32 [n, C], where each number should be by itself.
        pull: float32 [n, C], what the moves of rows outside the block add to it; changed.
        coupling: float32 [n, n]; a move of row i adds `coupling[i, j]` times itself to the pull of a later row j.
        quantize: Rounds a row.
        first: The number that the first row of the block has for it.
        xp: Array module that computes.
    """
    codes, values = xp.empty(target.shape, xp.uint8), xp.empty_like(target)
    if xp is not np and isinstance(quantize, Rows):
        _on_gpu((target, pull, coupling), quantize, first, (codes, values), xp)
        return codes, values
    for row in range(len(target)):
        codes[row], values[row] = quantize(first + row, target[row] + pull[row])
        pull[row + 1 :] += coupling[row, row + 1 :, None] * (target[row] - values[row])
    return codes, values


def _on_gpu(block: tuple[Any, Any, Any], quantize: Rows, first: int, found: tuple[Any, Any], xp: Any) -> None:
    """As `round_block`, into `found`, by one kernel that has a thread for each column."""
    (n, columns), grid = block[0].shape, quantize.grid
    scale = xp.ascontiguousarray(grid.scale[0])
    zero = np.intp(0) if grid.zero_point is None else xp.ascontiguousarray(grid.zero_point[0])
    groups = xp.asarray(quantize.groups[first : first + n], xp.int32)
    laid = (scale, zero, np.int32(scale.shape[1]), groups)
    table = (*quantize.table.on(xp), np.int32(len(quantize.table.codes)))
    arrays = map(xp.ascontiguousarray, block)
    arguments = (*arrays, np.int32(n), np.int32(columns), *laid, *table, *found)
    kernel("round_block")((-(-columns // _THREADS),), (_THREADS,), arguments)
