from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import DataError, UsageError
from onnxq.runtime.cache import Cache, carried
from onnxq.runtime.generate import Generator, generate
from onnxq.runtime.inputs import Input
from onnxq.runtime.scoring import CachedScorer, WholeScorer
from onnxq.runtime.session import session

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
TOKENIZER = CODE_LM / "tokenizer.json"
FORMS = ("plain", "grouped")
VOCABULARY = 4096


def past(name="past_key_values.0.key", shape=("batch", 2, "past", 8)):
    return Input(name, np.dtype(np.float32), shape)


def test_a_past_is_followed_by_its_present():
    (each,) = carried([past(), Input("input_ids", np.dtype(np.int64), ("b", "s"))], ["logits", "present.0.key"])
    assert (each.past.name, each.present, each.shape(3, 5)) == ("past_key_values.0.key", "present.0.key", (3, 2, 5, 8))


def test_a_past_that_nothing_follows_is_named():
    with pytest.raises(DataError, match=r"past_key_values\.0\.key.* has no output that follows it \('present\.0\.key'"):
        carried([past()], ["logits", "present.1.key"])


@pytest.mark.parametrize("shape", [("b", "h", "p", 8), ("b", 2, "p", "d"), ("b", 2, "p")])
def test_a_cache_of_other_dimensions_is_refused(shape):
    with pytest.raises(DataError, match=r"no cache of .* with fixed heads and size"):
        carried([past(shape=shape)], ["present.0.key"])


@pytest.fixture
def scorers(sample_with_cache):
    """Of the sample model: without a cache, and with one in a form."""

    def make(form):
        whole = WholeScorer(session(CODE_LM / "model.onnx", threads=1), VOCABULARY)
        with Generator(sample_with_cache(form), TOKENIZER, threads=1) as generator:
            opened, tensors = generator._session, generator._cache
        return whole, CachedScorer(opened, tensors, VOCABULARY, capacity=24 if form == "grouped" else None)

    return make


@pytest.mark.parametrize("form", FORMS)
def test_cached_scores_are_those_of_the_whole_sequences(form, scorers):
    whole, cached = scorers(form)
    stream = np.load(CODE_LM / "heldout.npy").astype(int).tolist()
    # Prompts of 9, 2 and 5 tokens; the first ends after two steps, the others go on.
    for step in range(6):
        sequences = [stream[: 9 + min(step, 2)], stream[30 : 32 + step], stream[60 : 65 + step]]
        # Scores of a sequence that has ended mean nothing.
        going = slice(0 if step < 3 else 1, None)
        np.testing.assert_allclose(cached.scores(sequences)[going], whole.scores(sequences)[going], atol=1e-4)


def test_a_cache_in_place_does_not_grow_and_another_grows_by_one_token(scorers):
    bytes_a_token = 6 * 2 * 2 * 32 * 4
    (_, grouped), (_, plain) = scorers("grouped"), scorers("plain")
    for scorer, expected in ((grouped, (24, 24)), (plain, (3, 4))):
        found = []
        for sequence in ([5, 6, 7], [5, 6, 7, 8]):
            scorer.scores([sequence])
            found.append(scorer.cache_bytes // bytes_a_token)
        assert tuple(found) == expected


def test_a_cache_may_write_into_the_buffers_of_another(sample_with_cache):
    with Generator(sample_with_cache("grouped"), TOKENIZER, threads=1) as generator:
        opened, tensors = generator._session, generator._cache
        first = Cache(opened, tensors, 1, tokens=4, in_place=True)
        second = Cache(opened, tensors, 1, tokens=4, in_place=True, shared_with=first)
        second.run("logits", {"input_ids": np.array([[5]]), "attention_mask": np.array([[1]])})
        filled = [value.numpy()[0, :, :, 0].any(axis=0).tolist() for value in first.values]
    assert filled == [[True, False, False, False]] * len(tensors)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_writes_what_each_prompt_alone_would(form, sample_with_cache):
    prompts = ["import os\n\n\ndef ", "class A", "def __init__(self, name):\n        self.name"]
    with Generator(sample_with_cache(form), TOKENIZER, threads=1) as generator:
        alone = [generator.generate([prompt], max_new_tokens=16)[0].text for prompt in prompts]
        pieces = dict.fromkeys(range(len(prompts)), "")

        def take(number, text):
            pieces[number] += text

        together = generator.generate(prompts, max_new_tokens=16, on_text=take)
    assert [each.text for each in together] == alone == list(pieces.values())
    assert alone[0] == generate(CODE_LM / "model.onnx", TOKENIZER, prompts[0], max_new_tokens=16).text
    assert 0 < together[0].prompt_seconds < together[0].seconds


def test_a_prompt_beyond_the_position_tables_is_refused(sample_with_cache):
    with (
        Generator(sample_with_cache("grouped"), TOKENIZER) as generator,
        pytest.raises(DataError, match="the prompt has 5000 tokens, the model takes 4608"),
    ):
        generator.generate(["\n#" * 2500])


def test_prompts_of_several_lengths_need_a_mask(model_of, tmp_path):
    text = """g (int64[B,S] input_ids, float[B,1,P,2] past_key)
        => (float[B,S,4096] logits, float[B,1,T,2] present_key) {
        logits = Gather(table, input_ids)
        new = Gather(cells, input_ids)
        cell = Unsqueeze(new, axis)
        present_key = Concat<axis=2>(past_key, cell)
    }"""
    model = model_of(
        text, table=np.eye(4096, dtype=np.float32), cells=np.ones((4096, 2), np.float32), axis=np.array([1])
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with Generator(path, TOKENIZER) as generator:
        assert generator.generate(["a b"], max_new_tokens=3)[0].finish == "length"
        with pytest.raises(DataError, match="several lengths need a model with an input 'attention_mask'"):
            generator.generate(["a", "a b c d"])


def test_a_cuda_graph_needs_a_cache_that_stays_in_place(sample_with_cache):
    with pytest.raises(UsageError, match="no GroupQueryAttention"):
        Generator(sample_with_cache("plain"), TOKENIZER, cuda_graph=True)


def test_the_tokenizer_beside_the_model_is_found(sample_with_cache, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(sample_with_cache("plain").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer\.json' does not exist"):
        Generator(path)
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    with Generator(path) as generator:
        assert generator.has_cache


@pytest.mark.gpu
def test_on_cuda_the_same_texts_come_as_on_the_cpu(sample_with_cache):
    path = sample_with_cache("grouped")
    assert texts(path, "cuda") == texts(path, "cpu")


@pytest.mark.gpu
def test_on_cuda_the_same_texts_come_with_and_without_a_graph(sample_with_cache):
    path = sample_with_cache("grouped", onnx.TensorProto.FLOAT16)
    assert texts(path, "cuda", cuda_graph=True) == texts(path, "cuda")


def texts(path, provider, **options):
    """What one generator makes of several batches: a graph is captured for each, when the cache of the last is gone."""
    batches = (["import os\n", "class "], ["def main"], ["import sys\n", "for i in"])
    try:
        opened = Generator(path, TOKENIZER, providers=[provider], **options)
    except UsageError as error:
        pytest.skip(str(error))
    with opened as generator:
        return [each.text for prompts in batches for each in generator.generate(prompts, max_new_tokens=8)]
