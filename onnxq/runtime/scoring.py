"""Scores of the next token of each of some sequences: by reading them again, or with a cache of keys and values."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, NonFiniteError
from onnxq.runtime.cache import Cache, Carried
from onnxq.runtime.inputs import Input, inputs_of, is_past, token_feed, token_input
from onnxq.runtime.session import run

if TYPE_CHECKING:
    import onnxruntime

Sequences = Sequence[Sequence[int]]
Scores = NDArray[np.float64]


class Scorer(Protocol):
    """Scores what follows sequences that grow by one token from call to call."""

    def scores(self, sequences: Sequences) -> Scores:
        """[batch, vocabulary] scores of what follows each sequence."""


class WholeScorer:
    """Runs the whole sequences again for each token."""

    def __init__(self, opened: "onnxruntime.InferenceSession", vocabulary: int) -> None:
        """`vocabulary`: tokens that the tokenizer has."""
        self._opened, self._inputs, self._vocabulary = opened, inputs_of(opened), vocabulary
        self._ids, self._output = token_input(self._inputs), logits_name(opened)

    def scores(self, sequences: Sequences) -> Scores:
        """As `Scorer`."""
        batch = self._ids.fixed(0) or len(sequences)
        starts = range(0, len(sequences), batch)
        return np.concatenate([self._scored(sequences[at : at + batch], batch) for at in starts])

    def _scored(self, sequences: Sequences, batch: int) -> Scores:
        """Scores of so many sequences as are run at once, or fewer."""
        # Padded behind to what the model takes; what follows a token does not change its scores.
        length = self._ids.fixed(1) or max(map(len, sequences))
        padded = np.zeros((batch, length), np.int64)
        for row, ids in zip(padded, sequences, strict=False):
            row[: len(ids)] = ids
        (logits,) = run(self._opened, [self._output], token_feed(self._inputs, padded))
        check_logits(self._output, logits.shape, length, self._vocabulary)
        return checked_rows(logits, [len(ids) - 1 for ids in sequences], self._vocabulary, sequences)


class CachedScorer:
    """Runs the prompts once, and then one token a sequence, with the cache bound from run to run.

    Prompts of several lengths are padded on the left, as exporters expect it; where the cache is one buffer that runs
    write into, on the right, since each sequence then has its own length in it.
    """

    def __init__(
        self,
        opened: "onnxruntime.InferenceSession",
        tensors: Sequence[Carried],
        vocabulary: int | None,
        *,
        capacity: int | None = None,
        captured: bool = False,
    ) -> None:
        """Begin with an empty cache.

        Args:
            opened: The model.
            tensors: Its cache.
            vocabulary: Tokens that the tokenizer has; None for all that the model scores.
            capacity: Tokens that the buffers hold, where the cache stays in place; None where it grows run by run.
            captured: The session captures steps as a CUDA graph, so that all shapes must stay as they are.
        """
        self._opened, self._tensors, self._vocabulary = opened, tensors, vocabulary
        self._inputs = [each for each in inputs_of(opened) if not is_past(each.name)]
        self._ids, self._output = token_input(self._inputs), logits_name(opened)
        self._capacity, self._captured = capacity, captured
        self._cache: Cache | None = None
        # How many tokens the model scores, once it has run.
        self._width = 0
        # How long the cache has become, where it grows.
        self._tokens = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache takes now."""
        return self._cache.size_bytes if self._cache else 0

    def scores(self, sequences: Sequences) -> Scores:
        """As `Scorer`; each call after the first has one more token a sequence.

        A sequence that has ended may stay as it is; its scores then mean nothing.
        """
        counts = np.array([len(ids) for ids in sequences])
        if self._cache is None:
            if len(set(counts)) > 1 and not any(each.name == "attention_mask" for each in self._inputs):
                raise DataError("prompts of several lengths need a model with an input 'attention_mask'")
            in_place = self._capacity is not None
            tokens = self._capacity or 0
            self._cache = Cache(self._opened, self._tensors, len(sequences), tokens=tokens, in_place=in_place)
            return self._read(sequences, counts, self._cache, is_step=False)
        return self._read(sequences, counts, self._cache, is_step=True)

    def _padded(self, sequences: Sequences, width: int) -> NDArray[np.int64]:
        padded = np.zeros((len(sequences), width), np.int64)
        for row, ids in zip(padded, sequences, strict=True):
            row[self._columns(len(ids), width)] = ids
        return padded

    def _columns(self, count: int, width: int) -> slice:
        """Where a sequence lies in a row that is padded to a width."""
        return slice(count) if self._capacity is not None else slice(width - count, width)

    def _read(self, sequences: Sequences, counts: NDArray[np.int64], cache: Cache, *, is_step: bool) -> Scores:
        """Run on the whole sequences, or on the last token of each."""
        self._tokens = self._tokens + 1 if is_step else int(counts.max())
        width = self._tokens if self._capacity is None else int(counts.max())
        replays = self._captured and is_step and self._capacity is not None
        mask = np.zeros((len(counts), self._capacity if replays and self._capacity else width), np.int64)
        for row, count in zip(mask, counts, strict=True):
            row[self._columns(count, width)] = 1
        if is_step:
            ids, positions = np.array([[each[-1]] for each in sequences], np.int64), counts[:, None] - 1
        else:
            ids, positions = self._padded(sequences, width), np.maximum(mask.cumsum(axis=1) - 1, 0)
        feed = {each.name: self._made(each, ids, mask, positions) for each in self._inputs}
        value = cache.replay(self._output, feed, self._width) if replays else cache.run(self._output, feed)
        logits = value.numpy()
        check_logits(self._output, logits.shape, ids.shape[1], self._vocabulary)
        self._width = logits.shape[2]
        last = [0 if is_step else self._columns(count, width).stop - 1 for count in counts]
        return checked_rows(logits, last, self._vocabulary, sequences)

    def _made(self, wanted: Input, ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any]) -> NDArray[Any]:
        known: Mapping[str, NDArray[Any]] = {
            self._ids.name: ids,
            "attention_mask": mask,
            "position_ids": positions,
            "token_type_ids": np.zeros_like(ids),
        }
        if wanted.name not in known:
            raise DataError(f"input {wanted} cannot be made from tokens, so this model cannot continue a text")
        return np.ascontiguousarray(known[wanted.name].astype(wanted.dtype))


def logits_name(opened: "onnxruntime.InferenceSession") -> str:
    """The output with the scores: `logits`, or else the first."""
    outputs = [output.name for output in opened.get_outputs()]
    return "logits" if "logits" in outputs else str(outputs[0])


def check_logits(name: str, shape: Sequence[int], length: int, vocabulary: int | None) -> None:
    """Raise a DataError where an output is no [batch, length, vocabulary], or of a smaller vocabulary."""
    if len(shape) != 3 or shape[1] != length:
        raise DataError(f"output '{name}' is {list(shape)}, not [batch, sequence, vocabulary] scores")
    if vocabulary is not None and shape[2] < vocabulary:
        raise DataError(
            f"the tokenizer has {vocabulary} tokens and output '{name}' scores {shape[2]}: it is another model's "
            "tokenizer, or the model predicts no tokens"
        )


def checked_rows(logits: NDArray[Any], at: Sequence[int], vocabulary: int | None, sequences: Sequences) -> Scores:
    """[batch, vocabulary]: of each sequence the scores at one place; NonFiniteError where they are NaN or +Inf."""
    # Tables are often padded beyond the tokenizer; a padding row is never the next token.
    rows = logits[np.arange(len(sequences)), list(at), :vocabulary].astype(np.float64)
    if (bad := np.isnan(rows).any(axis=1) | np.isposinf(rows).any(axis=1)).any():
        tokens = len(sequences[int(bad.argmax())])
        raise NonFiniteError(f"the model's scores after {tokens} tokens hold NaN or Inf")
    return rows
