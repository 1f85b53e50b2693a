"""Cut data into batches that fit what a model takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, UsageError, nearest, number_of
from onnxq.runtime.inputs import Input, token_feed, token_input
from onnxq.statistics.data import Array, Samples, Source, cast, read

LABELS = "labels"


@dataclass(frozen=True)
class Feed:
    """One batch, beginning at sample `first`.

    The first `rows` of it count; the rest repeats a row to fill a batch size that the model fixes.
    """

    inputs: dict[str, Array]
    rows: int
    first: int = 0


@dataclass(frozen=True)
class Feeds:
    """Batches of `samples` samples; iterating makes them one at a time.

    Attributes:
        samples: windows of tokens, or samples of arrays.
        batch: samples in a batch.
        fixed: the model takes batches of exactly that many.
        make: the inputs of a batch, given the numbers of its samples.
        labels: [samples] integers, if the data has the key `labels`.
    """

    samples: int
    batch: int
    fixed: bool
    make: Callable[[NDArray[np.intp]], dict[str, Array]]
    labels: Array | None = None

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-self.samples // self.batch)

    def __iter__(self) -> Iterator[Feed]:
        for start in range(0, self.samples, self.batch):
            rows = min(self.batch, self.samples - start)
            chosen = np.arange(start, start + (self.batch if self.fixed else rows))
            yield Feed(self.make(np.minimum(chosen, self.samples - 1)), rows, start)


def feeds_for(
    source: Source, inputs: Sequence[Input], *, sequence: int = 256, batch: int = 8, limit: int | None = None
) -> Feeds:
    """Batches for a model from whatever `source` is: a stream of tokens, one array, or named arrays.

    Raises:
        DataError: names the input, what the data has and what the model expects.
        UsageError: a size that is not positive.
    """
    data = read(source)
    if isinstance(data, dict):
        return array_feeds(data, inputs, batch=batch, limit=limit)
    if data.ndim == 1 and data.dtype.kind in "iu":
        return token_feeds(data, inputs, sequence=sequence, batch=batch, limit=limit)
    if data.ndim == 1 and any(each.name == "input_ids" for each in inputs):
        raise DataError(f"a stream of tokens is integers, and the data is {data.dtype}[{len(data)}]")
    if len(inputs) != 1:
        listed = ", ".join(str(each) for each in inputs)
        raise DataError(
            f"one array does not feed {len(inputs)} inputs ({listed}): give an .npz with one array an input"
        )
    return array_feeds({inputs[0].name: data}, inputs, batch=batch, limit=limit)


def token_feeds(
    tokens: Array, inputs: Sequence[Input], *, sequence: int = 256, batch: int = 8, limit: int | None = None
) -> Feeds:
    """Windows of `sequence` tokens that do not overlap; tokens behind the last whole window are not used.

    Args:
        tokens: [n] integers.
        inputs: what the model takes: token ids, and what can be made from them.
        sequence: tokens in a window.
        batch: windows in a batch; a batch size that the model fixes wins.
        limit: use only the first `limit` windows.

    Raises:
        DataError: the tokens are no stream of ids, or fewer than one window; the model takes other sequences.
        UsageError: a size that is not positive.
    """
    _check_sizes(sequence=sequence, batch=batch, limit=limit)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens are a one-dimensional integer array, not {tokens.dtype}{list(tokens.shape)}")
    ids = token_input(inputs)
    if (length := ids.fixed(1)) not in (None, sequence):
        raise DataError(
            f"input {ids} takes sequences of {length} tokens, not {sequence}: pass sequence={length} (--seq {length})"
        )
    count = len(tokens) // sequence
    if count == 0:
        raise DataError(
            f"the data has {number_of(len(tokens), 'token')}, fewer than one sequence of {sequence}: give more, or "
            "shorter sequences (--seq)"
        )
    count = count if limit is None else min(count, limit)
    windows = np.asarray(tokens[: count * sequence]).astype(np.int64).reshape(count, sequence)
    if windows.min() < 0:
        at = int(windows.argmin())
        raise DataError(f"token {at} of the data is {windows.flat[at]}; token ids are not negative")
    fixed = ids.fixed(0)
    return Feeds(count, fixed or batch, fixed is not None, lambda rows: token_feed(inputs, windows[rows]))


def array_feeds(
    arrays: Mapping[str, Samples], inputs: Sequence[Input], *, batch: int = 8, limit: int | None = None
) -> Feeds:
    """Batches of named arrays whose first axis counts samples.

    Args:
        arrays: one array an input, and optionally `labels`.
        inputs: what the model takes.
        batch: samples in a batch; a batch size that the model fixes wins.
        limit: use only the first `limit` samples.

    Raises:
        DataError: names the input, what the data has and what the model expects.
        UsageError: a size that is not positive.
    """
    _check_sizes(batch=batch, limit=limit)
    expected = {each.name: each for each in inputs}
    for name in arrays:
        if name not in expected and name != LABELS:
            raise DataError(f"the model has no input '{name}': {nearest(name, expected)}")
    for each in inputs:
        if each.name not in arrays:
            raise DataError(f"the data has no array for input {each}; it has {', '.join(arrays) or 'none'}")
    samples = _samples(arrays)
    sizes = {each.name: _fixed_batch(each, arrays[each.name].shape) for each in inputs}
    fixed = {size for size in sizes.values() if size is not None}
    if len(fixed) > 1:
        raise DataError(f"the inputs fix different batch sizes: {', '.join(f'{n} {s}' for n, s in sizes.items() if s)}")

    def make(rows: NDArray[np.intp]) -> dict[str, Array]:
        made = {}
        for each in inputs:
            taken = arrays[each.name][rows]
            # An input without a batch axis takes one sample at a time.
            made[each.name] = cast(taken[0] if taken.ndim > len(each.shape) else taken, each)
        return made

    labels = None if LABELS in expected or LABELS not in arrays else arrays[LABELS][np.arange(samples)]
    return Feeds(min(samples, limit or samples), max(fixed, default=batch), bool(fixed), make, labels=labels)


def _check_sizes(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UsageError(f"{name} is {size}; it must be at least 1")


def _samples(arrays: Mapping[str, Samples]) -> int:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise DataError(f"the first axis of every array counts samples, and all must have as many: {listed}")
    return next(iter(counts.values()))


def _fixed_batch(wanted: Input, shape: tuple[int, ...]) -> int | None:
    """The batch size that an input fixes, if any; raises a DataError where samples of `shape` do not fit it."""
    batched = len(shape) == len(wanted.shape)
    dims = wanted.shape[1:] if batched else wanted.shape
    if len(dims) != len(shape) - 1 or any(isinstance(d, int) and d != s for d, s in zip(dims, shape[1:], strict=True)):
        raise DataError(f"input {wanted} does not fit data of shape {list(shape)}, whose first axis counts samples")
    return wanted.fixed(0) if batched else 1
