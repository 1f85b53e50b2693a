"""Text from a language model: prompts are read once, and continued token by token."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxq.errors import DataError, UsageError
from onnxq.model.attention import grouped_attentions, table_rows
from onnxq.model.load import Model
from onnxq.runtime.cache import carried
from onnxq.runtime.inputs import inputs_of, token_input
from onnxq.runtime.sampling import next_token
from onnxq.runtime.scoring import CachedScorer, Scorer, WholeScorer
from onnxq.runtime.session import session
from onnxq.runtime.source import checked
from onnxq.runtime.text import GrowingText, end_tokens, load_tokenizer

if TYPE_CHECKING:
    import onnxruntime

Finish = Literal["length", "stop", "end"]


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        text: the new text, without the prompt and without what stopped it.
        tokens: ids of the new tokens.
        prompt_tokens: how many tokens the prompt has.
        finish: `length`, `stop` (a stop string) or `end` (the tokenizer's end of text).
        seconds: time from the first run to the last, of all prompts that were continued together.
        prompt_seconds: of that, until the first new token was known.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Finish
    seconds: float
    prompt_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0


class Generator:
    """A language model and its tokenizer, ready to continue prompts; a context manager that closes the model.

    A model with a cache (`past_key_values.N.key` in, `present.N.key` out) reads each prompt once and then one token a
    run; the cache stays where the model runs. Another one reads everything again for each token.
    """

    def __init__(
        self,
        model: Model | str | Path,
        tokenizer: str | Path | None = None,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        accuracy_level: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        """Open a model.

        Args:
            model: a language model, loaded or as a path: token ids in, scores [batch, sequence, vocabulary] out.
            tokenizer: path of a Hugging Face `tokenizer.json`; by default the one beside the model.
            providers: onnxruntime's execution providers.
            threads: threads within one operator.
            accuracy_level: how exactly fused low-bit matmuls compute; see `onnxq.runtime.session.session`.
            cuda_graph: capture a step on CUDA and replay it; for models whose cache stays in place (onnxruntime's
                GroupQueryAttention).

        Raises:
            DataError: the tokenizer cannot be read, or the cache of the model cannot be carried.
            UsageError: a CUDA graph is asked for, and the shapes of the model change from step to step.
            MissingExtraError: `tokenizers` or onnxruntime is not installed.
            SessionError: onnxruntime cannot load the model.
        """
        loaded, opening = checked(model)
        self._words = load_tokenizer(_tokenizer_of(loaded, tokenizer))
        attentions = grouped_attentions(loaded.ir.graph)
        self._in_place, self._graph = bool(attentions), cuda_graph
        if cuda_graph and not self._in_place:
            raise UsageError(
                "a CUDA graph needs a cache that stays in place, and the model has none (no GroupQueryAttention)"
            )
        with ExitStack() as stack:
            opened = session(
                stack.enter_context(opening),
                providers=providers,
                threads=threads,
                accuracy_level=accuracy_level,
                cuda_graph=cuda_graph,
            )
            inputs = inputs_of(opened, loaded)
            self._cache = carried(inputs, [output.name for output in opened.get_outputs()])
            self._ids = token_input(inputs)
            self._longest = table_rows(attentions[0]) if attentions else None if self._cache else self._ids.fixed(1)
            self._session: onnxruntime.InferenceSession | None = opened
            self._open = stack.pop_all()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; nothing can be generated any more."""
        self._session = None
        self._open.close()

    @property
    def has_cache(self) -> bool:
        """Whether the model has a cache."""
        return bool(self._cache)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_text: Callable[[int, str], None] | None = None,
    ) -> tuple[Generation, ...]:
        """Continue prompts together, as one batch.

        Args:
            prompts: the texts to continue.
            max_new_tokens: how many tokens at most, for each.
            temperature: 0 always takes the likeliest token.
            top_k: draw from the k likeliest tokens; 0 for all.
            top_p: draw from the likeliest tokens that hold this much probability.
            seed: the same seed and prompts draw the same texts.
            stop: strings that end a text.
            on_text: called with the number of a prompt and each piece of its text as it becomes certain.

        Raises:
            UsageError: a setting out of range, no prompt, or an empty one; or the model was closed.
            DataError: the tokenizer is another model's, a prompt is longer than the model takes, or the model cannot
                read prompts of several lengths.
            NonFiniteError: the model's scores hold NaN or +Inf.
            SessionError: onnxruntime cannot run the model.
        """
        if max_new_tokens < 1 or not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1 or seed < 0:
            raise UsageError(
                "max_new_tokens is at least 1, temperature, top_k and seed at least 0, top_p above 0 and at most 1"
            )
        ids: list[list[int]] = [self._words.encode(prompt).ids for prompt in prompts]
        if not ids or not all(ids):
            raise UsageError("the prompt is empty: give at least one token to continue")
        longest = max(map(len, ids))
        limit = self._longest or longest + max_new_tokens
        if longest > limit:
            raise DataError(f"the prompt has {longest} tokens, the model takes {limit}: give a shorter prompt")
        texts = [
            _Text(
                each,
                min(limit, len(each) + max_new_tokens),
                GrowingText(self._words, each, stop, on_text and partial(on_text, number)),
            )
            for number, each in enumerate(ids)
        ]
        rng, ends = np.random.default_rng(seed), end_tokens(self._words)
        draw = partial(next_token, rng=rng, temperature=temperature, top_k=top_k, top_p=top_p)
        scorer = self._scorer(min(limit, longest + max_new_tokens))
        start, first = time.perf_counter(), 0.0
        while any(text.finish is None for text in texts):
            # A text that has ended goes on being read, unchanged, until all have.
            scores = scorer.scores(ids)
            for text, row in zip(texts, scores, strict=True):
                if text.finish is None:
                    text.take(draw(row), ends)
            first = first or time.perf_counter() - start
        seconds = time.perf_counter() - start
        return tuple(text.result(seconds, first) for text in texts)

    def _scorer(self, capacity: int) -> Scorer:
        if self._session is None:
            raise UsageError("this generator is closed, and its model with it: make another one")
        vocabulary = self._words.get_vocab_size()
        if not self._cache:
            return WholeScorer(self._session, vocabulary)
        return CachedScorer(
            self._session,
            self._cache,
            vocabulary,
            capacity=capacity if self._in_place else None,
            captured=self._graph,
        )


class _Text:
    """One prompt and what follows it, up to so many tokens in all."""

    def __init__(self, ids: list[int], length: int, written: GrowingText) -> None:
        self.ids, self.prompt_tokens, self._length, self._written = ids, len(ids), length, written
        self.finish: Finish | None = "length" if len(ids) >= length else None

    def take(self, token: int, ends: set[int]) -> None:
        """Append a token, or end."""
        if token in ends:
            self.finish = "end"
            return
        self.ids.append(token)
        if self._written.stopped(token):
            self.finish = "stop"
        elif len(self.ids) >= self._length:
            self.finish = "length"

    def result(self, seconds: float, prompt_seconds: float) -> Generation:
        """What was generated."""
        new = tuple(self.ids[self.prompt_tokens :])
        text = self._written.finish(self.ids)
        return Generation(text, new, self.prompt_tokens, self.finish or "length", seconds, prompt_seconds)


def _tokenizer_of(model: Model, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    if model.path is None:
        raise UsageError("a model in memory has no tokenizer.json beside it: give one")
    return model.path.with_name("tokenizer.json")


def generate(
    model: Model | str | Path,
    tokenizer: str | Path | None,
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
    """Continue one prompt: `Generator(model, tokenizer, ...)` and its `generate`, where arguments and errors stand."""
    with Generator(model, tokenizer, providers=providers, threads=threads, accuracy_level=accuracy_level) as generator:
        (made,) = generator.generate(
            [prompt],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            on_text=on_text and (lambda _, text: on_text(text)),
        )
    return made
