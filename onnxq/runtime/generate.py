"""Text from a language model, to see what a conversion did to it: the growing sequence is run again for each token."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, UsageError
from onnxq.model.load import Model
from onnxq.runtime.sampling import next_token
from onnxq.runtime.scoring import Scorer
from onnxq.runtime.session import session
from onnxq.runtime.source import checked
from onnxq.runtime.text import GrowingText, end_tokens, load_tokenizer

Finish = Literal["length", "stop", "end"]


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        text: the new text, without the prompt and without what stopped it.
        tokens: ids of the new tokens.
        prompt_tokens: how many tokens the prompt has.
        finish: `length`, `stop` (a stop string) or `end` (the tokenizer's end of text).
        seconds: time from the first run to the last.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Finish
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0


def generate(
    model: Model | str | Path,
    tokenizer: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue `prompt`.

    Args:
        model: a language model, loaded or as a path: token ids in, scores [batch, sequence, vocabulary] out.
        tokenizer: path of a Hugging Face `tokenizer.json`.
        prompt: the text to continue.
        max_new_tokens: how many tokens at most.
        temperature: 0 always takes the likeliest token.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens that hold this much probability.
        seed: the same seed draws the same text.
        stop: strings that end the text.
        providers: onnxruntime's execution providers.
        threads: threads within one operator.
        accuracy_level: how exactly fused low-bit matmuls compute; see `onnxq.runtime.session.session`.
        on_text: called with each piece of new text as it becomes certain.

    Raises:
        UsageError: a setting out of range, or an empty prompt.
        DataError: the tokenizer cannot be read or is another model's, or the text is longer than the model takes.
        NonFiniteError: the model's scores hold NaN or +Inf.
        MissingExtraError: `tokenizers` or onnxruntime is not installed.
        SessionError: onnxruntime cannot load or run the model.
    """
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UsageError("max_new_tokens is at least 1, temperature and top_k at least 0, top_p above 0 and at most 1")
    words = load_tokenizer(tokenizer)
    ids: list[int] = words.encode(prompt).ids
    if not ids:
        raise UsageError("the prompt is empty: give at least one token to continue")
    written = GrowingText(words, len(ids), stop, on_text)
    draw = partial(next_token, rng=np.random.default_rng(seed), temperature=temperature, top_k=top_k, top_p=top_p)
    with checked(model)[1] as source:
        opened = session(source, providers=providers, threads=threads, accuracy_level=accuracy_level)
        scorer = Scorer(opened, words.get_vocab_size())
        prompt_tokens, longest = len(ids), scorer.longest or len(ids) + max_new_tokens
        if prompt_tokens > longest:
            raise DataError(f"the prompt has {prompt_tokens} tokens, the model takes {longest}: give a shorter prompt")
        start = time.perf_counter()
        finish = _continue(ids, min(longest, prompt_tokens + max_new_tokens), scorer, draw, end_tokens(words), written)
        seconds = time.perf_counter() - start
    return Generation(written.finish(ids), tuple(ids[prompt_tokens:]), prompt_tokens, finish, seconds)


def _continue(
    ids: list[int],
    length: int,
    scorer: Scorer,
    draw: Callable[[NDArray[np.float64]], int],
    ends: set[int],
    written: GrowingText,
) -> Finish:
    """Append tokens to `ids` until there are `length`, or the text ends."""
    while len(ids) < length:
        token = draw(scorer.scores(ids))
        if token in ends:
            return "end"
        ids.append(token)
        if written.stopped(ids):
            return "stop"
    return "length"
