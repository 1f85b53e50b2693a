"""What a calibration run feeds a model with, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxq.errors import DataError, nearest
from onnxq.runtime.inputs import Input
from onnxq.statistics.data import Array, cast
from onnxq.statistics.feeds import Feeds


@dataclass(frozen=True)
class Batch:
    """One run of the model.

    Attributes:
        inputs: One array an input.
        first: Number of its first sample.
        last: Number of its last sample.
        weight: What sums over it count. 1, but for a run that takes back what filled up a batch.
    """

    inputs: dict[str, Array]
    first: int
    last: int
    weight: float = 1.0


class Batches(Protocol):
    """All batches; they can be gone through again where `once` is false."""

    samples: int
    once: bool

    def __iter__(self) -> Iterator[Batch]: ...

    def count(self) -> int:
        """Samples; where only going through all of them tells, that is done."""


class OfFeeds:
    """Batches of data that is cut into samples."""

    once = False

    def __init__(self, feeds: Feeds) -> None:
        """Take the samples of `feeds`."""
        self.samples = feeds.samples
        self._feeds = feeds

    def count(self) -> int:
        """See `Batches`."""
        return self.samples

    def __iter__(self) -> Iterator[Batch]:
        for feed in self._feeds:
            last = feed.first + feed.rows - 1
            yield Batch(feed.inputs, feed.first, last)
            # Where a model fixes the batch, the last batch repeats its last sample. Nothing tells where in a tensor the
            # samples of a batch lie, but sums over a batch of that sample alone are as many times the surplus.
            if surplus := (self._feeds.batch - feed.rows if self._feeds.fixed else 0):
                alone = self._feeds.make(np.full(self._feeds.batch, self.samples - 1))
                yield Batch(alone, feed.first, last, -surplus / self._feeds.batch)


class OfIterable:
    """Batches that somebody else makes: each is run as it is."""

    def __init__(self, data: Iterable[Mapping[str, Array]], inputs: Sequence[Input], limit: int | None) -> None:
        """Take mappings from names of inputs to arrays until `limit` samples are reached."""
        self._data = data
        self._inputs = inputs
        self._limit = limit
        self.samples = limit or 0
        self.once = iter(data) is data

    def count(self) -> int:
        """See `Batches`."""
        return max(batch.last for batch in self) + 1

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        for number, feed in enumerate(self._data):
            made = self._fitting(number, feed)
            rows = next((len(each) for each in made.values() if each.ndim), 1)
            yield Batch(made, done, done + rows - 1)
            done += rows
            if self._limit is not None and done >= self._limit:
                break
        if not done:
            raise DataError("the calibration data is empty")
        self.samples = done

    def _fitting(self, number: int, feed: Mapping[str, Array]) -> dict[str, Array]:
        if not isinstance(feed, Mapping):
            raise DataError(f"feed {number} is a {type(feed).__name__}, not a mapping from inputs to arrays")
        expected = {each.name: each for each in self._inputs}
        for name in feed:
            if name not in expected:
                raise DataError(f"feed {number}: the model has no input '{name}': {nearest(name, expected)}")
        made = {}
        for name, each in expected.items():
            if name not in feed:
                raise DataError(f"feed {number} has no array for input {each}; it has {', '.join(feed) or 'none'}")
            array = np.asarray(feed[name])
            fits = array.ndim == len(each.shape) and all(
                dim == size for dim, size in zip(each.shape, array.shape, strict=True) if isinstance(dim, int)
            )
            if not fits:
                raise DataError(f"feed {number}: input {each} does not fit an array of shape {list(array.shape)}")
            made[name] = cast(array, each)
        return made
