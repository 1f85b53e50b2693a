"""How far the scores of a changed model are from those of the model itself, on the same data."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.distance import Distance
from onnxq.errors import DataError, NonFiniteError
from onnxq.passes.activations import Activations

# Scores at a time: what a core's cache holds while a chain of operations passes over them.
_CHUNK = 1 << 16
_SUM_TOLERANCE = 1e-3
# What a model that gives probabilities cannot tell from none.
_LEAST = np.float32(1e-30)


@dataclass(frozen=True)
class Divergence:
    """A changed model as against the model itself.

    Attributes:
        kl: Kullback-Leibler divergence KL(model || changed) of the predictions, the mean of all of them, in nats.
        loss: Mean of -log of what the changed model gives to the right tokens or classes, in nats; NaN without them.
        agreement: Share of predictions whose highest score is the same token or class.
        sqnr_db: Power of the scores over that of their difference, in dB.
    """

    kl: float
    loss: float
    agreement: float
    sqnr_db: float


class Reference:
    """Scores of the model itself, batch by batch, and sums over what others differ from them."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes scores that do not fit in memory."""
        self._kept = Activations(folder)
        self._targets: list[NDArray[np.int64] | None] = []
        self._probabilities: bool | None = None

    def learn(self, scores: NDArray[Any], targets: NDArray[np.int64] | None) -> None:
        """Keep the scores of the next batch.

        Args:
            scores: [..., classes] of any float type: logits, or probabilities.
            targets: [...] the right classes, -1 where there is none; None if there are none at all.

        Raises:
            DataError: A target is not among the classes.
            NonFiniteError: A score is NaN or +Inf.
        """
        rows = scores.reshape(-1, scores.shape[-1])
        batch = len(self._targets)
        if np.isnan(rows).any() or np.isposinf(rows).any():
            raise NonFiniteError(f"the model's scores are NaN or Inf in batch {batch}")
        if targets is not None and len(targets := targets.reshape(-1)) and int(targets.max()) >= rows.shape[1]:
            raise DataError(f"the data has class or token {int(targets.max())}, the model scores {rows.shape[1]}")
        if self._probabilities is None:
            self._probabilities = are_probabilities(rows)
        self._kept.put(batch, {"scores": rows.astype(np.float32)})
        self._targets.append(targets)

    def compare(self, batch: int, scores: NDArray[Any], sums: "Sums") -> None:
        """Add what the scores of a changed model are in one batch."""
        (known,) = self._kept.get(batch, ["scores"]).values()
        rows, targets = scores.reshape(-1, scores.shape[-1]), self._targets[batch]
        step = max(1, _CHUNK // rows.shape[1])
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            sums.add(
                known[chunk],
                rows[chunk].astype(np.float32),
                None if targets is None else targets[chunk],
                probabilities=bool(self._probabilities),
            )


@dataclass
class Sums:
    """Running sums over predictions.

    Attributes:
        rows: Predictions.
        divergence: Sum of their divergences.
        agreed: How many agree.
        targets: How many have a right answer.
        loss: Sum of -log of what it is given.
        distance: Between the scores.
    """

    rows: int = 0
    divergence: float = 0.0
    agreed: int = 0
    targets: int = 0
    loss: float = 0.0
    distance: Distance = field(default_factory=Distance)

    def add(
        self,
        known: NDArray[np.float32],
        scores: NDArray[np.float32],
        targets: NDArray[np.int64] | None,
        *,
        probabilities: bool,
    ) -> None:
        """Add predictions [rows, classes]; a score that is NaN or Inf makes the divergence infinite."""
        self.rows += len(scores)
        self.agreed += int((known.argmax(axis=1) == scores.argmax(axis=1)).sum())
        self.distance.add(known, scores)
        if np.isnan(scores).any() or np.isposinf(scores).any():
            self.divergence = self.loss = math.inf
            return
        wanted, found = (log_probabilities(each, probabilities=probabilities) for each in (known, scores))
        with np.errstate(invalid="ignore"):
            # Where the model gives no probability at all, nothing can be lost.
            lost = np.where(np.isneginf(wanted), np.float32(0), np.exp(wanted) * (wanted - found))
        self.divergence += float(lost.sum(dtype=np.float64))
        if targets is not None:
            at = np.flatnonzero(targets >= 0)
            self.targets += len(at)
            self.loss -= float(found[at, targets[at]].sum(dtype=np.float64))

    def result(self) -> Divergence:
        """The means."""
        rows = max(self.rows, 1)
        return Divergence(
            # Rounding leaves some 1e-9 below zero where nothing differs.
            kl=max(self.divergence / rows, 0.0),
            loss=self.loss / self.targets if self.targets else math.nan,
            agreement=self.agreed / rows,
            sqnr_db=self.distance.sqnr_db,
        )


def log_probabilities(scores: NDArray[np.float32], *, probabilities: bool = False) -> NDArray[np.float32]:
    """Log probabilities of [rows, classes] logits, or of probabilities."""
    if probabilities:
        logs: NDArray[np.float32] = np.log(np.maximum(scores, _LEAST))
        return logs
    shifted: NDArray[np.float32] = scores - scores.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def are_probabilities(rows: NDArray[Any]) -> bool:
    """Whether rows of scores are probabilities already: none below zero, and their sum is one."""
    wide = rows.astype(np.float32, copy=False)
    return bool(len(wide)) and bool((wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) < _SUM_TOLERANCE).all())
