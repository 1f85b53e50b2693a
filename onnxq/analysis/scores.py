"""Scores that a model puts out: which output holds them, and what they say about the right tokens."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, NonFiniteError

# Logits in float64 at a time: 16 MiB, whatever the vocabulary.
_CHUNK_VALUES = 1 << 21


def scores_output(outputs: Sequence[Any], ranks: Collection[int]) -> Any:
    """The output that holds scores in its last dimension: `logits`, or else the first of one of the ranks.

    Raises:
        DataError: No output has such a rank.
    """
    fitting = [output for output in outputs if len(output.shape) in ranks]
    for output in fitting:
        if output.name == "logits":
            return output
    if not fitting:
        listed = ", ".join(f"{output.name}{output.shape}" for output in outputs)
        dimensions = " or ".join(map(str, ranks))
        raise DataError(f"no output has {dimensions} dimensions with scores in the last one: the model has {listed}")
    return fitting[0]


def negative_log_likelihood(logits: NDArray[Any], targets: NDArray[np.int64], where: str = "the input") -> float:
    """Sum of -log softmax(logits)[target] in nats, added up in float64.

    Args:
        logits: [tokens, vocabulary] of any float type.
        targets: [tokens] ids.
        where: what an error calls the place.

    Raises:
        NonFiniteError: a score is NaN or +Inf, or a target's is -Inf.
    """
    total = 0.0
    rows = max(1, _CHUNK_VALUES // logits.shape[1])
    for start in range(0, len(targets), rows):
        chunk = logits[start : start + rows].astype(np.float64)
        with np.errstate(invalid="ignore"):
            chunk -= chunk.max(axis=1, keepdims=True)
            picked = chunk[np.arange(len(chunk)), targets[start : start + rows]]
            losses = np.log(np.exp(chunk).sum(axis=1)) - picked
        if not np.isfinite(losses).all():
            bad = np.flatnonzero(~np.isfinite(losses))
            raise NonFiniteError(f"the model's scores are NaN or Inf in {where} (first at token {start + int(bad[0])})")
        total += float(losses.sum())
    return total


def check_vocabulary(tokens: NDArray[np.int64], vocabulary: int) -> None:
    """Raise a DataError if a token is beyond what the model scores."""
    if (largest := int(tokens.max())) >= vocabulary:
        raise DataError(
            f"the data has token {largest}, the model scores {vocabulary}: the tokens are another tokenizer's"
        )
