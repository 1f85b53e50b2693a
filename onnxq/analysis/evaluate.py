"""How good a model is: perplexity of a language model, or top-1 accuracy of a classifier."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.execution import Execution, execution
from onnxq.analysis.scores import check_vocabulary, negative_log_likelihood, scores_output
from onnxq.errors import DataError, NonFiniteError, UsageError
from onnxq.model.attention import grouped_attentions
from onnxq.model.load import Model
from onnxq.runtime.cache import carried
from onnxq.runtime.inputs import inputs_of, token_input
from onnxq.runtime.scoring import CachedScorer
from onnxq.runtime.session import CUDA, run, session
from onnxq.runtime.source import checked
from onnxq.statistics.data import Array, Source, read_one
from onnxq.statistics.feeds import Feed, Feeds, feeds_for, token_feeds

if TYPE_CHECKING:
    import onnxruntime

Progress = Callable[[int, int], None]
"""(samples done, samples in all)"""

# exp overflows float64 a little above.
_LARGEST_MEAN_NLL = 700.0


@dataclass(frozen=True)
class Evaluation:
    """One measurement.

    Attributes:
        metric: `perplexity` (lower is better) or `accuracy` (top-1, 0 to 1).
        value: the metric.
        nll: negative log-likelihood summed over the predicted tokens, in nats; None for accuracy.
        tokens: tokens predicted; 0 for accuracy.
        samples: windows of tokens, or samples classified.
        seconds: time inside onnxruntime, without loading and scoring.
        execution: how the weights ran.
    """

    metric: Literal["perplexity", "accuracy"]
    value: float
    nll: float | None
    tokens: int
    samples: int
    seconds: float
    execution: Execution

    @property
    def tokens_per_second(self) -> float:
        """Predicted tokens per second of running; 0 for accuracy."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            "value": self.value,
            "nll": self.nll,
            "tokens": self.tokens,
            "samples": self.samples,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "execution": self.execution.to_dict(),
        }


def evaluate(
    model: Model | str | Path,
    *,
    tokens: Source | None = None,
    data: Source | None = None,
    labels: Source | None = None,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = None,
    cached: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model in onnxruntime.

    Args:
        model: a loaded model, or the path of one.
        tokens: a stream of token ids: measures perplexity. It is cut into windows of `sequence` tokens that do not
            overlap, and each token of a window but the first is predicted from those before it.
        data: inputs of a classifier: measures accuracy.
        labels: [samples] class numbers; by default the key `labels` of `data`.
        sequence: tokens in a window.
        batch: windows or samples run at once.
        limit: use only the first `limit` windows or samples.
        cached: read one token a run behind the model's cache of keys and values, as generating does; by default a
            window is read whole, and what a quantized cache loses does not show.
        providers: onnxruntime's execution providers.
        threads: threads within one operator.
        accuracy_level: how exactly fused low-bit matmuls compute; see `onnxq.runtime.session.session`.
        progress: called with samples done and samples in all.

    Raises:
        UsageError: neither or both of `tokens` and `data`, or `cached` for a model without a cache.
        DataError: the data does not fit the model.
        NonFiniteError: the model's scores hold NaN or Inf.
        SessionError: onnxruntime cannot load or run the model.
    """
    if (tokens is None) == (data is None):
        raise UsageError("give either tokens, for perplexity (--tokens), or data, for accuracy (--data)")
    if sequence < 2:
        raise UsageError(f"sequence is {sequence}; predicting a token needs one before it, so at least 2")
    loaded, opening = checked(model)
    with opening as source:
        opened = session(source, providers=providers, threads=threads, accuracy_level=accuracy_level)
        how = execution(loaded, accuracy_level=accuracy_level, cuda=opened.get_providers()[0] == CUDA)
        inputs = inputs_of(opened, loaded)
        if data is not None:
            feeds = feeds_for(data, inputs, batch=batch, limit=limit)
            return _accuracy(opened, feeds, _labels(labels, feeds), how, progress)
        stream = read_one({} if tokens is None else tokens, "tokens")
        feeds = token_feeds(stream, inputs, sequence=sequence, batch=batch, limit=limit)
        score = partial(_by_token, opened, loaded, sequence) if cached else partial(_at_once, opened)
        return _perplexity(opened, feeds, token_input(inputs).name, score, how, progress)


def _perplexity(
    opened: "onnxruntime.InferenceSession",
    feeds: Feeds,
    ids: str,
    score: Callable[[str, Feed, NDArray[np.int64]], NDArray[Any]],
    how: Execution,
    progress: Progress | None,
) -> Evaluation:
    logits = scores_output(opened.get_outputs(), (3,))
    nll, tokens, done, seconds = 0.0, 0, 0, 0.0
    for feed in feeds:
        # What fills up a batch that the model fixes is run too, and does not count.
        run_windows = feed.inputs[ids].astype(np.int64)
        windows = run_windows[: feed.rows]
        if isinstance(logits.shape[2], int):
            check_vocabulary(windows, logits.shape[2])
        start = time.perf_counter()
        scores = score(logits.name, feed, run_windows)
        seconds += time.perf_counter() - start
        check_vocabulary(windows, scores.shape[2])
        for row, window in zip(scores, windows, strict=False):
            nll += negative_log_likelihood(row, window[1:], f"window {done}")
            tokens += len(window) - 1
            done += 1
        if progress:
            progress(done, feeds.samples)
    if (mean := nll / tokens) > _LARGEST_MEAN_NLL:
        raise NonFiniteError(f"the mean negative log-likelihood is {mean:.0f} nats a token: its exponential is Inf")
    return Evaluation("perplexity", math.exp(mean), nll, tokens, done, seconds, how)


def _at_once(
    opened: "onnxruntime.InferenceSession", output: str, feed: Feed, _windows: NDArray[np.int64]
) -> NDArray[Any]:
    """Scores of all tokens of a window but the first, [windows, sequence - 1, vocabulary], from one run."""
    (scores,) = run(opened, [output], feed.inputs)
    return scores[:, :-1]


def _by_token(
    opened: "onnxruntime.InferenceSession",
    model: Model,
    sequence: int,
    output: str,
    _feed: Feed,
    windows: NDArray[np.int64],
) -> NDArray[Any]:
    """As `_at_once`, from as many runs as tokens."""
    tensors = carried(inputs_of(opened, model), [each.name for each in opened.get_outputs()])
    if not tensors:
        raise UsageError("the model has no cache (past_key_values.N.key): it cannot be evaluated behind one")
    size = next(each.shape[2] for each in opened.get_outputs() if each.name == output)
    vocabulary = size if isinstance(size, int) else None
    in_place = bool(grouped_attentions(model.ir.graph))
    scorer = CachedScorer(opened, tensors, vocabulary, capacity=sequence if in_place else None)
    steps = [scorer.scores(list(windows[:, :read])) for read in range(1, windows.shape[1])]
    return np.stack(steps, axis=1, dtype=np.float32, casting="same_kind")


def _accuracy(
    opened: "onnxruntime.InferenceSession", feeds: Feeds, classes: Array, how: Execution, progress: Progress | None
) -> Evaluation:
    output = scores_output(opened.get_outputs(), (2,))
    right, done, seconds = 0, 0, 0.0
    for feed in feeds:
        start = time.perf_counter()
        (scores,) = run(opened, [output.name], feed.inputs)
        seconds += time.perf_counter() - start
        scores = scores[: feed.rows]
        if np.isnan(scores).any():
            raise NonFiniteError(f"the model's scores are NaN in samples {done} to {done + feed.rows - 1}")
        chosen = classes[done : done + feed.rows]
        if (wrong := (chosen < 0) | (chosen >= scores.shape[1])).any():
            raise DataError(f"the data has label {chosen[wrong][0]}, the model has {scores.shape[1]} classes")
        right += int((scores.argmax(axis=1) == chosen).sum())
        done += feed.rows
        if progress:
            progress(done, feeds.samples)
    return Evaluation("accuracy", right / done, None, 0, done, seconds, how)


def _labels(labels: Source | None, feeds: Feeds) -> Array:
    """[samples] class numbers."""
    found = feeds.labels if labels is None else read_one(labels, "labels")
    if found is None:
        raise DataError("accuracy needs labels: give them, or an array 'labels' in the data")
    if found.dtype.kind not in "iu" or found.size != len(found) or len(found) < feeds.samples:
        raise DataError(f"labels are one class number a sample ({feeds.samples}), not {found.dtype}{list(found.shape)}")
    return found.reshape(-1)
