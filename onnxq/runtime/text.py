"""Text from tokens: the tokenizer, and text that is given out while it grows."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How tokenizers call the token that ends a text; the tokenizer file itself does not say which it is.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>", "</s>")
_UNFINISHED = "\ufffd"  # what decoders put in the place of bytes that are no whole character
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # how `ByteFallback` calls them


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
    """New text as it grows; a piece goes out once no stop string and no later token can take it back.

    A token is decoded behind a window of those before it, back to where the text is certain. Windows are a few tokens
    long, whatever the text: what decoders do depends on the first token (SentencePiece drops its space), on a
    character's other bytes, and on the other bytes of a run of them (`ByteFallback` takes all of it, or nothing).
    """

    def __init__(
        self, words: "Tokenizer", prompt: Sequence[int], stop: Sequence[str], on_text: Callable[[str], None] | None
    ) -> None:
        self._words, self._stop, self._on_text = words, tuple(filter(None, stop)), on_text
        # Decoded with the prompt, since a tokenizer may drop the space of a first word.
        self._begin, self._sent = len(words.decode(prompt)), 0
        # Whole texts take longer to decode the longer they are, and nobody looks before the end.
        self._looks = bool(self._stop) or on_text is not None
        if self._looks:
            self._silent = {at for at, token in words.get_added_tokens_decoder().items() if token.special}
            self._forget([token for token in prompt if token not in self._silent])
            self._unsent = ""

    def stopped(self, token: int) -> bool:
        """Take the next token; whether a stop string is in the text."""
        if not self._looks or token in self._silent:
            return False
        self._window.append(token)
        new = str(self._words.decode(self._window))[self._known :]
        text = self._unsent + new
        if self._cut(text) < len(text):
            return True
        if not new.endswith(_UNFINISHED) and not self._is_byte(token):
            held = max((len(each) for each in self._stop), default=1) - 1
            certain = max(len(text) - held, 0)
            self._send(text[:certain])
            self._unsent = text[certain:]
            self._forget(self._window)
        return False

    def finish(self, ids: Sequence[int]) -> str:
        """The whole new text, of the prompt and all tokens taken."""
        text = str(self._words.decode(ids))[self._begin :]
        text = text[: self._cut(text)]
        self._send(text[self._sent :])
        return text

    def _forget(self, ids: Sequence[int]) -> None:
        """Keep the last tokens only: enough to have a character among them, and the whole of a run of bytes."""
        text, first = "", len(ids)
        while first and (not text.strip(_UNFINISHED) or self._is_byte(ids[first])):
            first -= 1
            text = self._words.decode(ids[first:])
        self._window, self._known = list(ids[first:]), len(text)

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._words.id_to_token(token) or "") is not None

    def _cut(self, text: str) -> int:
        return min((at for each in self._stop if (at := text.find(each)) >= 0), default=len(text))

    def _send(self, text: str) -> None:
        if self._on_text and text:
            self._on_text(text)
            self._sent += len(text)
