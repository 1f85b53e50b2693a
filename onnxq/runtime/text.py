"""Text from tokens: the tokenizer, and text that is given out while it grows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How tokenizers call the token that ends a text; the tokenizer file itself does not say which it is.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>", "</s>")


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """A Hugging Face `tokenizer.json`.

    Raises:
        DataError: there is no such file, or it is something else.
        MissingExtraError: the package `tokenizers` is not installed.
    """
    path = Path(path)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError.of("tokenizers", "cpu", "generating text") from error
    if not path.is_file():
        raise DataError(f"tokenizer '{path}' does not exist; it is the file tokenizer.json of the model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise DataError(f"'{path}' is not a Hugging Face tokenizer.json: {error}") from error


def end_tokens(words: "Tokenizer") -> set[int]:
    """Ids of the tokens that end a text."""
    return {found for name in _END_TOKENS if (found := words.token_to_id(name)) is not None}


class GrowingText:
    """New text as it grows; a piece goes out once no stop string and no unfinished character can take it back."""

    def __init__(
        self, words: "Tokenizer", prompt: Sequence[int], stop: Sequence[str], on_text: Callable[[str], None] | None
    ) -> None:
        self._words, self._stop, self._on_text = words, tuple(filter(None, stop)), on_text
        # Decoded with the prompt, since a tokenizer may drop the space of a first word.
        self._begin, self._sent = len(words.decode(prompt)), 0

    def stopped(self, ids: Sequence[int]) -> bool:
        """Take the text up to the last id; whether a stop string is in it."""
        if not self._stop and self._on_text is None:
            # Decoding takes longer the longer the text is, and nobody looks before the end.
            return False
        text = self._decoded(ids)
        if self._cut(text) < len(text):
            return True
        held = max((len(each) for each in self._stop), default=1) - 1
        self._send(text.rstrip("\ufffd")[: max(len(text) - held, 0)])
        return False

    def finish(self, ids: Sequence[int]) -> str:
        """The whole new text."""
        text = self._decoded(ids)
        text = text[: self._cut(text)]
        self._send(text)
        return text

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._words.decode(ids))[self._begin :]

    def _cut(self, text: str) -> int:
        return min((at for each in self._stop if (at := text.find(each)) >= 0), default=len(text))

    def _send(self, text: str) -> None:
        if self._on_text and len(text) > self._sent:
            self._on_text(text[self._sent :])
            self._sent = len(text)
