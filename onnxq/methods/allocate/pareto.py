"""What the best choice of a format for every layer costs and loses, for every budget at once.

ZeroQ (Cai et al., arXiv 2001.00281, section 3.2) measures what a model loses when one layer alone is quantized, takes
the losses of several layers to add up, and finds the choices that no others beat by dynamic programming over layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Of a frontier; beyond that, of neighbours that cost nearly the same the one that loses least stays.
_POINTS = 4096


@dataclass(frozen=True)
class Frontier:
    """Choices for all layers that no other choice beats both in cost and in loss.

    Attributes:
        costs: [n] int64, rising.
        losses: [n] float64, falling.
        steps: For each layer which point of the layers before it a point continues, and with which choice; both [n of
            that layer] integers.
    """

    costs: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]
    steps: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]], ...]

    def within(self, budget: int) -> int | None:
        """The point that loses least of those that cost at most `budget`; None where even the cheapest costs more."""
        found = int(np.searchsorted(self.costs, budget, side="right")) - 1
        return None if found < 0 else found

    def choices(self, point: int) -> tuple[int, ...]:
        """The choice of each layer at a point."""
        made = []
        for parents, chosen in reversed(self.steps):
            made.append(int(chosen[point]))
            point = int(parents[point])
        return tuple(reversed(made))


def frontier(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], *, points: int = _POINTS) -> Frontier:
    """Spread budgets over layers.

    The time it takes grows with layers x choices x `points`. It is exact as long as no more points than that are worth
    keeping.

    Args:
        costs: For each layer what each of its choices costs, in bits or bytes.
        losses: For each layer what is lost with each of its choices; losses of layers add up.
        points: That are kept, at most.
    """
    total, lost = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for cost, loss in zip(costs, losses, strict=True):
        own_cost, own_loss = np.asarray(cost, np.int64), np.asarray(loss, np.float64)
        all_costs = (total[:, None] + own_cost).reshape(-1)
        all_losses = (lost[:, None] + own_loss).reshape(-1)
        kept = _thinned(_undominated(all_costs, all_losses), all_costs, points)
        parents, chosen = np.divmod(kept, len(own_cost))
        steps.append((parents.astype(np.int32), chosen.astype(np.int16)))
        total, lost = all_costs[kept], all_losses[kept]
    return Frontier(total, lost, tuple(steps))


def _undominated(costs: npt.NDArray[np.int64], losses: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Numbers of the points that lose less than every point that costs as much or less, by rising cost."""
    order = np.lexsort((losses, costs))
    sorted_losses = losses[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(sorted_losses)[:-1]))
    kept: npt.NDArray[np.intp] = order[sorted_losses < before]
    return kept


def _thinned(kept: npt.NDArray[np.intp], costs: npt.NDArray[np.int64], points: int) -> npt.NDArray[np.intp]:
    """The cheapest point, and of each of `points` steps of cost the one that loses least."""
    if len(kept) <= points:
        return kept
    low, high = int(costs[kept[0]]), int(costs[kept[-1]])
    bins = (costs[kept] - low) * (points - 1) // (high - low)
    last = np.append(bins[1:] != bins[:-1], True)
    last[0] = True
    thinned: npt.NDArray[np.intp] = kept[last]
    return thinned
