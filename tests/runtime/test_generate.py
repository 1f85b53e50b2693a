import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxq.errors import DataError, NonFiniteError, UsageError
from onnxq.runtime.generate import Generator, generate

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
WORDS = ["a", "b", "c", "d", "e", "<|endoftext|>"]


@pytest.fixture
def tokenizer(tmp_path):
    """Letters, one a token; token 5 ends the text."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="a"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = None
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def model(model_of, tmp_path):
    """A model in which each token is followed by the next one of the alphabet, most likely."""

    def make(rows=6, sequence="S", follow=None, extra="", scores=None, batch="B"):
        table = np.zeros((rows, rows), np.float32)
        for token in range(rows):
            table[token, (follow or {}).get(token, (token + 1) % rows)] = 5
        text = f"g (int64[{batch},{sequence}] input_ids{extra}) => (float[{batch},{sequence},V] logits)"
        text += "{ logits = Gather(w, input_ids) }"
        path = tmp_path / "model.onnx"
        path.write_bytes(model_of(text, w=table if scores is None else scores).SerializeToString())
        return path

    return make


def test_greedy_text_follows_the_highest_score_until_the_end_token(model, tokenizer):
    made = generate(model(), tokenizer, "ab")
    assert (made.text.replace(" ", ""), made.tokens, made.finish) == ("cde", (2, 3, 4), "end")
    assert made.prompt_tokens == 2


def test_the_length_is_the_limit(model, tokenizer):
    made = generate(model(), tokenizer, "a", max_new_tokens=2)
    assert (made.tokens, made.finish) == ((1, 2), "length")
    assert made.tokens_per_second > 0


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(model, tokenizer):
    pieces = []
    made = generate(model(), tokenizer, "a", stop=["c d"], on_text=pieces.append)
    assert (made.text, made.finish) == (" b ", "stop")
    assert "".join(pieces) == made.text


def test_nothing_goes_out_that_a_long_stop_string_takes_back(model, tokenizer):
    pieces = []
    made = generate(model(follow={4: 0}), tokenizer, "a", stop=[" b c d e"], on_text=pieces.append)
    assert (made.text, made.finish) == ("", "stop")
    assert pieces == []


def test_pieces_add_up_to_the_text_and_come_before_the_end(model, tokenizer):
    pieces = []
    made = generate(model(follow={4: 0}), tokenizer, "a", max_new_tokens=9, on_text=pieces.append)
    assert len(pieces) > 5
    assert "".join(pieces) == made.text


def test_drawing_depends_on_the_seed_alone(model, tokenizer):
    flat = np.zeros((6, 6), np.float32)
    flat[:, 5] = -100
    path = model(scores=flat)
    texts = [generate(path, tokenizer, "a", temperature=1.0, seed=seed, max_new_tokens=12).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_mask_and_positions_are_made(model, tokenizer):
    path = model(extra=", int64[B,S] attention_mask, int64[B,S] position_ids")
    assert generate(path, tokenizer, "a", max_new_tokens=1).tokens == (1,)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_model_of_a_fixed_batch_continues_any_number_of_prompts(batch, model, tokenizer):
    prompts = ["a", "bc", "d"]
    texts = [
        [made.tokens for made in Generator(path, tokenizer).generate(prompts, max_new_tokens=3)]
        for path in (model(), model(batch=batch))
    ]
    assert texts[0] == texts[1] == [(1, 2, 3), (3, 4), (4,)]


def test_a_model_of_fixed_length_is_fed_padded_and_stops_when_full(model, tokenizer):
    made = generate(model(sequence=4), tokenizer, "ab", max_new_tokens=9)
    assert (made.tokens, made.finish) == ((2, 3), "length")


def test_a_prompt_longer_than_the_model_takes_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="the prompt has 5 tokens, the model takes 4"):
        generate(model(sequence=4), tokenizer, "abcde")


def test_a_tokenizer_larger_than_the_model_is_another_models(model, tokenizer):
    with pytest.raises(DataError, match=r"the tokenizer has 6 tokens and output .* scores 5"):
        generate(model(rows=5), tokenizer, "a")


def test_rows_beyond_the_tokenizer_are_padding(model, tokenizer):
    assert generate(model(rows=8, follow={0: 7}), tokenizer, "a", max_new_tokens=1).tokens == (0,)


def test_scores_that_are_nan_are_an_error(model, tokenizer):
    with pytest.raises(NonFiniteError, match="after 1 tokens"):
        generate(model(scores=np.full((6, 6), np.nan, np.float32)), tokenizer, "a")


def test_a_missing_or_broken_tokenizer_is_named(model, tmp_path):
    with pytest.raises(DataError, match=r"none\.json' does not exist"):
        generate(model(), tmp_path / "none.json", "a")
    (tmp_path / "bad.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(DataError, match=r"bad\.json' is not a Hugging Face tokenizer"):
        generate(model(), tmp_path / "bad.json", "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong, model, tokenizer):
    with pytest.raises(UsageError, match="top_p above 0"):
        generate(model(), tokenizer, "a", **wrong)


def test_an_empty_prompt_is_refused(model, tokenizer):
    with pytest.raises(UsageError, match="prompt is empty"):
        generate(model(), tokenizer, "")


def test_a_closed_generator_stays_closed_and_says_so(model, tokenizer):
    with Generator(model(), tokenizer) as generator:
        generator.close()
        with pytest.raises(UsageError, match="closed"):
            generator.generate(["a"])


def test_characters_of_several_tokens_are_given_out_whole():
    pieces = []
    settings = {"temperature": 50.0, "seed": 3, "max_new_tokens": 40, "on_text": pieces.append}
    made = generate(CODE_LM / "model.onnx", CODE_LM / "tokenizer.json", "# é ", **settings)
    assert "".join(pieces) == made.text
    assert len(made.text.encode()) > len(made.text), "the draw has a character of several bytes"


def test_the_sample_language_model_writes_python():
    made = generate(CODE_LM / "model.onnx", CODE_LM / "tokenizer.json", "def __init__(self", max_new_tokens=12)
    assert "self." in made.text
