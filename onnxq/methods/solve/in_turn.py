"""Round rows one after the other, each told by what those before it were moved.

GPTQ and coordinate descent are one loop: a row is rounded where it should be by itself, plus a pull, the sum of the
moves of rows before it at what they mean for it. Rows go in blocks, between which matrix products bring in the moves of
all others. These add up in float64, so that the order in which a BLAS adds decides no code; within a block the order is
fixed. On a GPU a block is one kernel (`in_turn.cu`), whose codes are those of numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxq.formats.base import Codes, Floats
from onnxq.methods.grid import Grid

BLOCK = 64
"""Rows between two matrix products."""

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
    for row in range(len(target)):
        codes[row], values[row] = quantize(first + row, target[row] + pull[row])
        pull[row + 1 :] += coupling[row, row + 1 :, None] * (target[row] - values[row])
    return codes, values
