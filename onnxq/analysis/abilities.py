"""What a language model can do that perplexity does not show: predict the right token, and copy from its context.

"Do Emergent Abilities Exist in Quantized Large Language Models" (arXiv 2307.08072) finds that in-context learning
outlives four bits and not two; copying a sequence seen once is the least of it, and needs no task and no tokenizer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.scores import check_vocabulary, scores_output
from onnxq.errors import DataError, UsageError
from onnxq.model.load import Model
from onnxq.runtime.inputs import inputs_of, token_input
from onnxq.runtime.session import run, session
from onnxq.runtime.source import checked
from onnxq.statistics.data import Source, read_one
from onnxq.statistics.feeds import token_feeds

Progress = Callable[[int, int], None]
"""(windows run, windows in all)"""


@dataclass(frozen=True)
class Abilities:
    """What was found.

    Attributes:
        next_token: Share of tokens of a text that get the highest score, each from those before it.
        copying: Share of tokens that get the highest score where a sequence of random tokens comes a second time.
        unseen: The same where it comes for the first time: what guessing gives.
        tokens: Tokens of the text that were predicted.
        copied: Tokens of second times that were predicted.
        seconds: In onnxruntime.
    """

    next_token: float
    copying: float
    unseen: float
    tokens: int
    copied: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def abilities(
    model: Model | str | Path,
    tokens: Source,
    *,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = None,
    prompts: int = 32,
    seed: int = 0,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    progress: Progress | None = None,
) -> Abilities:
    """Check the abilities of a language model.

    Args:
        model: A loaded model, or the path of one.
        tokens: A stream of token ids, of a text that the model was not trained on.
        sequence: Tokens in a window; half of it is a random sequence to copy.
        batch: Windows run at once.
        limit: Use only the first `limit` windows of the text.
        prompts: Random sequences to copy: tokens drawn from the text, each as often as it comes there.
        seed: Of the random sequences.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator.
        accuracy_level: As for `onnxq.session`.
        progress: Called with windows run and windows to run.

    Raises:
        UsageError: The sequences are too short, or there are no prompts.
        DataError: The tokens do not fit the model.
        SessionError: Onnxruntime cannot load or run the model.
    """
    if sequence < 4 or prompts < 1:
        raise UsageError(f"copying needs sequences of 4 tokens and 1 prompt at least, not {sequence} and {prompts}")
    text = read_one(tokens, "tokens")
    if not text.size:
        raise DataError("there are no tokens to draw sequences from: the data is empty")
    rng, half = np.random.default_rng(seed), sequence // 2
    drawn = rng.choice(np.asarray(text).astype(np.int64).reshape(-1), (prompts, half))
    # A model of fixed length gets a token more where that is odd.
    repeated = np.concatenate((drawn, drawn, drawn[:, : sequence - 2 * half]), axis=1)
    _, opening = checked(model)
    with opening as source:
        opened = session(source, providers=providers, threads=threads, accuracy_level=accuracy_level)
        inputs = inputs_of(opened)
        ids, output = token_input(inputs).name, scores_output(opened.get_outputs(), (3,)).name
        found, seconds, done = [], 0.0, 0
        streams = [
            token_feeds(stream, inputs, sequence=sequence, batch=batch, limit=number)
            for stream, number in ((text, limit), (repeated.reshape(-1), None))
        ]
        for feeds in streams:
            right = []
            for feed in feeds:
                started = time.perf_counter()
                (scores,) = run(opened, [output], feed.inputs)
                seconds += time.perf_counter() - started
                windows = feed.inputs[ids][: feed.rows].astype(np.int64)
                check_vocabulary(windows, scores.shape[2])
                right.append(_right(scores[: feed.rows], windows))
                done += feed.rows
                if progress is not None:
                    progress(done, sum(each.samples for each in streams))
            found.append(np.concatenate(right))
    # Of the second time, the first token cannot be known.
    again = found[1][:, half : 2 * half - 1]
    return Abilities(
        next_token=float(found[0].mean()),
        copying=float(again.mean()),
        unseen=float(found[1][:, : half - 1].mean()),
        tokens=found[0].size,
        copied=again.size,
        seconds=seconds,
    )


def _right(scores: NDArray[Any], windows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[windows, tokens - 1]: whether each token but the first has the highest score."""
    right: NDArray[np.bool_] = scores[:, :-1].argmax(axis=2) == windows[:, 1:]
    return right
