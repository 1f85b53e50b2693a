"""RoSTE's chooser: rotate a place only where that lowers the error of quantization (arXiv 2502.09003, section 4).

The paper compares sums of the rounding errors of weights and activations. Here the two meet in the error of what a
layer puts out, so that they weigh what they cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rounding = Callable[[np.ndarray], np.ndarray]
"""What is left of an array after it is quantized; of the same shape."""


def output_error(rows: np.ndarray, weight: np.ndarray, round_rows: Rounding, round_weight: Rounding) -> float:
    """How far rows @ weight turns when both are rounded: from 0, not at all, to 1, nothing is left of it.

    It is the squared sine of the angle between the exact row and the rounded one, in the mean over rows. A few huge
    rows do not decide alone; a row that rounding shrinks to noise is lost, though its error is no larger than itself;
    and a length that is wrong is left to what corrects weights afterwards.

    Args:
        rows: float32 [n, K], activations.
        weight: float32 [K, N].
        round_rows: Of the activations.
        round_weight: Of the weight.
    """
    exact = (rows @ weight).astype(np.float64)
    rounded = (round_rows(rows) @ round_weight(weight)).astype(np.float64)
    energy, common = (exact**2).sum(axis=1), (exact * rounded).sum(axis=1)
    seen = np.flatnonzero(energy > 0)
    squares = energy[seen] * np.maximum((rounded[seen] ** 2).sum(axis=1), np.finfo(np.float64).tiny)
    return float(1 - (common[seen] ** 2 / squares).mean()) if len(seen) else 0.0


@dataclass(frozen=True)
class Cost:
    """What a layer costs, by whether the places around it are rotated.

    Attributes:
        before: Number of the place that rotates its input, or None.
        behind: Number of the place that rotates its output, or None.
        errors: [2, 2]: by whether the input is rotated, and whether the output is.
    """

    before: int | None
    behind: int | None
    errors: np.ndarray

    def at(self, rotated: Sequence[bool]) -> float:
        """With these places rotated."""
        return float(self.errors[_at(self.before, rotated), _at(self.behind, rotated)])


def _at(place: int | None, rotated: Sequence[bool]) -> int:
    return 0 if place is None else int(rotated[place])


def choose(places: int, costs: Sequence[Cost]) -> tuple[bool, ...]:
    """Which places to rotate, so that the sum of all costs is small.

    Never worse than all or none of them. It is the smallest sum where layers join the last place with others, and no
    two others: a residual stream with attentions and products.
    """
    near: list[list[Cost]] = [
        [each for each in costs if place in (each.before, each.behind)] for place in range(places)
    ]
    ends = []
    for start in (False, True):
        rotated = [start] * places
        improved = True
        while improved:
            improved = False
            for place in range(places):
                flipped = rotated.copy()
                flipped[place] = not rotated[place]
                if sum(each.at(flipped) for each in near[place]) < sum(each.at(rotated) for each in near[place]):
                    rotated, improved = flipped, True
        ends.append(tuple(rotated))
    return min(ends, key=lambda rotated: sum(each.at(rotated) for each in costs))
