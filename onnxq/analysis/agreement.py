"""Whether two models decide alike: their best scores row by row, and the samples on which they differ most."""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.distance import Distance

_BEST = 5
_WORST = 5
# Scores at a time.
_CHUNK_VALUES = 1 << 21


@dataclass(frozen=True)
class Agreement:
    """One output of scores, the last axis counting classes or tokens.

    Attributes:
        name: Of the output.
        rows: Decisions compared: samples, or tokens of all samples.
        same_best: Share of rows whose best score is at the same place in both.
        shared: Mean share of the `best` highest scores of a that are among those of b too; None where there are no more
            classes than that.
        best: How many are compared.
    """

    name: str
    rows: int
    same_best: float
    shared: float | None
    best: int


@dataclass(frozen=True)
class SampleDifference:
    """One sample on which two models differ much.

    Attributes:
        sample: Its number in the data, from 0.
        output: The output that differs most.
        sqnr_db: Signal to noise of that output; -Inf where it is NaN or Inf in one model only.
    """

    sample: int
    output: str
    sqnr_db: float


@dataclass
class Outcomes:
    """What is kept of the outputs of two models, batch by batch: a few numbers an output and the worst samples."""

    _rows: dict[str, int] = field(default_factory=dict)
    _same: dict[str, int] = field(default_factory=dict)
    _shared: dict[str, float] = field(default_factory=dict)
    _classes: dict[str, int] = field(default_factory=dict)
    _worst: dict[int, SampleDifference] = field(default_factory=dict)

    def add(self, name: str, a: NDArray[Any], b: NDArray[Any], *, first: int, rows: int, batch: int) -> None:
        """Take in one output of one batch.

        Args:
            name: Of the output.
            a: From the reference.
            b: From the other model.
            first: Number of the first sample.
            rows: Samples that count; the rest fills the batch.
            batch: Samples in the batch.
        """
        if a.shape != b.shape or a.dtype.kind != "f" or b.dtype.kind != "f":
            return
        if a.ndim and a.shape[0] == batch:
            a, b = a[:rows], b[:rows]
            self._differ(name, a, b, first)
        # Scores of samples, or of the tokens of samples; of more axes the last need not count classes.
        if a.ndim in (2, 3) and a.shape[-1] > 1:
            self._decide(name, a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]))

    def agreements(self) -> tuple[Agreement, ...]:
        """Of each output that holds scores."""
        return tuple(
            Agreement(
                name,
                rows,
                self._same[name] / rows,
                self._shared[name] / rows if self._classes[name] > _BEST else None,
                min(_BEST, self._classes[name]),
            )
            for name, rows in self._rows.items()
            if rows
        )

    def worst(self) -> tuple[SampleDifference, ...]:
        """The samples that differ most, the worst first; none on which the models agree in every number."""
        return tuple(each for each in sorted(self._worst.values(), key=_order) if each.sqnr_db < math.inf)

    def _differ(self, name: str, a: NDArray[Any], b: NDArray[Any], first: int) -> None:
        for number, (left, right) in enumerate(zip(a, b, strict=True), start=first):
            distance = Distance()
            distance.add(np.asarray(left), np.asarray(right))
            found = SampleDifference(number, name, -math.inf if distance.nonfinite else distance.sqnr_db)
            known = self._worst.get(number)
            if known is None or found.sqnr_db < known.sqnr_db:
                self._worst[number] = found
        kept = heapq.nsmallest(_WORST, self._worst.values(), key=_order)
        self._worst = {each.sample: each for each in kept}

    def _decide(self, name: str, a: NDArray[Any], b: NDArray[Any]) -> None:
        best, step = min(_BEST, a.shape[1]), max(1, _CHUNK_VALUES // a.shape[1])
        self._classes[name] = a.shape[1]
        self._rows[name] = self._rows.get(name, 0) + len(a)
        for start in range(0, len(a), step):
            left, right = a[start : start + step], b[start : start + step]
            same = np.count_nonzero(left.argmax(axis=1) == right.argmax(axis=1))
            self._same[name] = self._same.get(name, 0) + int(same)
            ours, theirs = (np.argpartition(-each, best - 1, axis=1)[:, :best] for each in (left, right))
            shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1).sum()
            self._shared[name] = self._shared.get(name, 0.0) + float(shared)


def _order(difference: SampleDifference) -> tuple[float, int]:
    return difference.sqnr_db, difference.sample
