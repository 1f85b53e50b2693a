"""Text that is given out while it grows is, piece by piece, the text that all tokens make together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from onnxq.runtime.text import GrowingText

# Tokens as byte-level BPE has them: single bytes, of which most are no character alone, and merged ones.
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_MERGES = [("Ġ", "a"), ("â", "Ĥ"), ("b", "â"), ("¬", "Ġa"), ("ð", "Ł"), ("Ċ", "Ċ")]
_WORDS = ["▁", "▁a", "b", "▁▁", "é", "##c", "d</w>", "|", ".", "�", " e ", "<pad>"]
_FALLBACK = [f"<0x{byte:02X}>" for byte in (0x0A, 0x41, 0xE2, 0x82, 0xAC, 0xFF)]


def byte_level() -> Tokenizer:
    vocabulary = {token: at for at, token in enumerate([*_BYTES, *("".join(pair) for pair in _MERGES)])}
    made = Tokenizer(models.BPE(vocabulary, _MERGES))
    made.decoder = decoders.ByteLevel()
    return made


def of_words(decoder: decoders.Decoder) -> Tokenizer:
    vocabulary = {token: at for at, token in enumerate([*_WORDS, *_FALLBACK])}
    made = Tokenizer(models.WordLevel(vocabulary))
    made.decoder = decoder
    return made


def sentence_piece() -> decoders.Decoder:
    """As LLaMA has it."""
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


TOKENIZERS = {
    "byte-level": byte_level(),
    "metaspace": of_words(decoders.Metaspace()),
    "metaspace, bytes": of_words(sentence_piece()),
    "metaspace, no prefix": of_words(decoders.Metaspace(prepend_scheme="never")),
    "wordpiece": of_words(decoders.WordPiece()),
    "bpe with suffixes": of_words(decoders.BPEDecoder("</w>")),
    "ctc": of_words(decoders.CTC()),
}
for each in TOKENIZERS.values():
    each.add_special_tokens(["<|im_end|>"])
    each.add_tokens([AddedToken("<tool>", special=False)])


def written(words: Tokenizer, prompt: list[int], new: list[int], stop: list[str]) -> tuple[str, str, int]:
    """What goes out, the text, and how many tokens were read."""
    pieces: list[str] = []
    text = GrowingText(words, prompt, stop, pieces.append)
    read = next((at for at, token in enumerate(new, 1) if text.stopped(token)), len(new))
    whole = text.finish([*prompt, *new[:read]])
    assert all(pieces)
    return "".join(pieces), whole, read


def cut(text: str, stop: list[str]) -> str:
    return min((text[: text.find(each)] for each in stop if each in text), key=len, default=text)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_pieces_add_up_to_what_all_tokens_make(name, data):
    words = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, words.get_vocab_size() - 1), min_size=1, max_size=24))
    at = data.draw(st.integers(1, len(ids)))
    stop = data.draw(st.lists(st.sampled_from(["a", " a", "b\n", "\n\n", "€", " b d", "é.|"]), max_size=2))
    whole, begin = words.decode(ids), len(words.decode(ids[:at]))
    streamed, text, read = written(words, ids[:at], ids[at:], stop)
    assert streamed == text
    # It is over with the first token that completes a stop string.
    assert text == cut(words.decode(ids[: at + read])[begin:], stop)
    assert read == len(ids) - at or text != whole[begin:]
    for fewer in range(at, at + read):
        shorter = words.decode(ids[:fewer])[begin:]
        assert cut(shorter, stop) == shorter


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_token_costs_the_same_however_long_the_text_is(name):
    class Counting:
        longest = 0

        def __getattr__(self, method):
            return getattr(TOKENIZERS[name], method)

        def decode(self, ids):
            self.longest = max(self.longest, len(ids))
            return TOKENIZERS[name].decode(ids)

    words, pieces = Counting(), []
    # Of a byte-level tokenizer the bytes of "é", and a space with a letter; words, and bytes of "€", of the others.
    a, b, c = (_BYTES.index("Ã"), _BYTES.index("©"), 256) if name == "byte-level" else (14, 15, 16)
    prompt = [c, 1] * 50
    text = GrowingText(words, prompt, ["never"], pieces.append)
    words.longest = 0
    new = [a, b, c, 2] * 200
    for token in new:
        assert not text.stopped(token)
    assert 1 < words.longest < 8
    assert len(pieces) > 100
    assert text.finish([*prompt, *new]) == "".join(pieces)


def test_nothing_is_decoded_before_the_end_where_nobody_looks():
    class Silent:
        def __getattr__(self, method):
            raise AssertionError(method)

        def decode(self, ids):
            return "x" * len(ids)

    text = GrowingText(Silent(), [1, 2, 3], (), None)
    assert not any(text.stopped(token) for token in range(20))
    assert text.finish(list(range(23))) == "x" * 20
