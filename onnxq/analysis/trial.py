"""`Trial`: data on which variants of a model are judged against the model itself."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.divergence import Divergence, Reference, Sums
from onnxq.analysis.scores import scores_output
from onnxq.analysis.swapping import Run, Swapping
from onnxq.model.sites import Weight
from onnxq.runtime.inputs import token_input
from onnxq.statistics.data import Source, read
from onnxq.statistics.feeds import Feed, Feeds, feeds_for

_NOTHING: Mapping[str, NDArray[Any]] = MappingProxyType({})


class Trial:
    """Runs variants of a model on data, one after the other.

    Attributes:
        loss: Of the model itself, mean over the predictions with a right answer, in nats; NaN without them.
        samples: Windows of tokens, or samples.
        runs: Variants run so far.
        run_seconds: Spent on them, with the comparison.
    """

    def __init__(self, swapping: Swapping, feeds: Feeds, folder: Path, *, tokens: str | None) -> None:
        """Run the model itself.

        Args:
            swapping: The model and its variants.
            feeds: The data.
            folder: Takes what does not fit in memory.
            tokens: The input that holds a stream of tokens: each is to be predicted from those before it.

        Raises:
            DataError: The model has no output with scores, or the data has wrong classes.
            NonFiniteError: The model's scores are NaN or Inf.
        """
        self._swapping, self._feeds, self._tokens = swapping, feeds, tokens
        self._output = scores_output(swapping.outputs, (3,) if tokens else (2, 3)).name
        self._reference = Reference(folder)
        with swapping.replaced() as plain:
            for feed in feeds:
                self._reference.learn(self._scores(plain, feed), self._targets(feed))
        self.samples, self.runs, self.run_seconds = feeds.samples, 0, 0.0
        self.loss = self.judge().loss
        self.runs, self.run_seconds = 0, 0.0

    def judge(
        self,
        weights: Sequence[tuple[Weight, NDArray[np.float32]]] = (),
        addends: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    ) -> Divergence:
        """How far a variant is from the model.

        Args:
            weights: The numbers it has instead, as for `Swapping.replaced`.
            addends: For each batch what is added to which values.
        """
        started, sums = time.perf_counter(), Sums()
        with self._swapping.replaced(weights) as variant:
            for number, feed in enumerate(self._feeds):
                added = {} if addends is None else addends[number]
                self._reference.compare(number, self._scores(variant, feed, added), sums)
        self.runs += 1
        self.run_seconds += time.perf_counter() - started
        return sums.result()

    def values(self, name: str) -> list[NDArray[Any]]:
        """What a value is in each batch, in the model itself; it must be among the outputs of `Swapping`."""
        with self._swapping.replaced() as plain:
            return [plain([name], feed.inputs)[0] for feed in self._feeds]

    def _scores(self, variant: Run, feed: Feed, added: Mapping[str, NDArray[Any]] = _NOTHING) -> NDArray[Any]:
        (scores,) = variant([self._output], {**feed.inputs, **added})
        # Rows beyond are there to fill up a batch.
        return scores[: feed.rows] if feed.rows < self._feeds.batch and self._feeds.fixed else scores

    def _targets(self, feed: Feed) -> NDArray[np.int64] | None:
        if self._tokens is not None:
            ids = feed.inputs[self._tokens][: feed.rows].astype(np.int64)
            return np.concatenate((ids[:, 1:], np.full((len(ids), 1), -1)), axis=1)
        labels = self._feeds.labels
        return None if labels is None else labels.reshape(-1)[feed.first : feed.first + feed.rows].astype(np.int64)


def trial(swapping: Swapping, data: Source, folder: Path, *, sequence: int, batch: int, limit: int | None) -> Trial:
    """Variants of a model judged on data in any form; arguments as for `feeds_for`."""
    found = read(data)
    feeds = feeds_for(found, swapping.inputs, sequence=sequence, batch=batch, limit=limit)
    stream = not isinstance(found, dict) and found.ndim == 1 and found.dtype.kind in "iu"
    return Trial(swapping, feeds, folder, tokens=token_input(swapping.inputs).name if stream else None)
