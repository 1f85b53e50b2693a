import json
import math
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.analysis.evaluate import evaluate
from onnxq.analysis.scores import negative_log_likelihood
from onnxq.errors import DataError, NonFiniteError, UsageError
from onnxq.model.load import load

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
VOCABULARY = 7
LM = """g (int64[B,S] input_ids) => (float[B,S,V] other, float[B,S,V] logits) {
    logits = Gather(w, input_ids)
    other = Neg(logits)
}"""
CLASSIFIER = "g (float[B,4] x) => (float[B,3] scores) { scores = MatMul(x, w) }"
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
TOKENS = RNG.integers(0, VOCABULARY, 50)


def expected_nll(tokens, sequence):
    """The definition, one token at a time."""
    total = 0.0
    for start in range(0, len(tokens) - sequence + 1, sequence):
        window = tokens[start : start + sequence]
        for before, after in pairwise(window):
            scores = TABLE[before].astype(np.float64)
            total -= math.log(math.exp(scores[after]) / sum(math.exp(score) for score in scores))
    return total


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_perplexity_is_that_of_each_token_after_those_before_it_in_its_window(batch, model_file):
    made = evaluate(model_file(LM, w=TABLE), tokens=TOKENS, sequence=8, batch=batch)
    nll = expected_nll(TOKENS, 8)
    assert (made.metric, made.samples, made.tokens) == ("perplexity", 6, 6 * 7)
    assert made.nll == pytest.approx(nll, rel=1e-9)
    assert made.value == pytest.approx(math.exp(nll / 42), rel=1e-9)
    assert made.tokens_per_second > 0


def test_a_fixed_batch_counts_no_window_twice(model_file):
    fixed = model_file(LM.replace("B", "4"), w=TABLE)
    assert evaluate(fixed, tokens=TOKENS, sequence=8).nll == pytest.approx(expected_nll(TOKENS, 8), rel=1e-9)


def test_a_fixed_batch_is_filled_up_behind_a_cache_as_well(sample_with_cache, tmp_path):
    proto = onnx.load(sample_with_cache("plain"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "fixed.onnx")
    settings = {"tokens": np.load(CODE_LM / "heldout.npy")[:24], "sequence": 8, "cached": True, "threads": 1}
    found = [evaluate(path, **settings).nll for path in (sample_with_cache("plain"), tmp_path / "fixed.onnx")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_limit_takes_the_first_windows(model_file):
    made = evaluate(model_file(LM, w=TABLE), tokens=TOKENS, sequence=8, limit=2)
    assert made.nll == pytest.approx(expected_nll(TOKENS[:16], 8), rel=1e-9)


def test_a_loaded_model_and_a_token_file_give_the_same_as_a_path_and_an_array(model_file, tmp_path):
    path = model_file(LM, w=TABLE)
    np.save(tmp_path / "tokens.npy", TOKENS.astype(np.uint16))
    first, second = (
        evaluate(path, tokens=TOKENS, sequence=8),
        evaluate(load(path), tokens=tmp_path / "tokens.npy", sequence=8),
    )
    assert first.value == second.value


def test_float16_models_are_scored(model_file):
    half = model_file(LM.replace("float", "float16"), w=TABLE.astype(np.float16))
    assert evaluate(half, tokens=TOKENS, sequence=8).nll == pytest.approx(expected_nll(TOKENS, 8), rel=2e-3)


def test_scores_far_from_zero_do_not_overflow():
    logits = np.float32([[1e4, 1e4 - 1, -1e4]])
    assert negative_log_likelihood(logits, np.array([1])) == pytest.approx(1 + math.log1p(math.exp(-1)), rel=1e-9)


def test_a_vocabulary_larger_than_a_chunk_is_scored_row_by_row():
    logits = np.zeros((3, 3_000_000), np.float16)
    assert negative_log_likelihood(logits, np.array([0, 1, 2])) == pytest.approx(3 * math.log(3_000_000))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_nan_or_inf_are_an_error(bad, model_file):
    table = TABLE.copy()
    table[TOKENS[10], 3] = bad
    first = int(np.flatnonzero(TOKENS.reshape(-1, 10)[:, :-1].reshape(-1) == TOKENS[10])[0])
    with pytest.raises(NonFiniteError, match=rf"NaN or Inf in window {first // 9} \(first at token {first % 9}\)"):
        evaluate(model_file(LM, w=table), tokens=TOKENS, sequence=10)


def test_a_score_of_minus_infinity_is_allowed_where_it_is_not_the_target():
    logits = np.float32([[0, -np.inf, 0]])
    assert negative_log_likelihood(logits, np.array([0])) == pytest.approx(math.log(2))
    with pytest.raises(NonFiniteError):
        negative_log_likelihood(logits, np.array([1]))


def test_a_model_that_predicts_nothing_gives_an_error_instead_of_infinity(model_file):
    table = np.float32(np.eye(VOCABULARY)) * 0
    table[:, 0] = 1e6
    with pytest.raises(NonFiniteError, match="nats a token"):
        evaluate(model_file(LM, w=table), tokens=TOKENS, sequence=8)


def test_tokens_of_another_tokenizer_are_refused(model_file):
    table = np.zeros((12, VOCABULARY), np.float32)
    for text in (LM, LM.replace("V]", "7]")):
        with pytest.raises(DataError, match="token 9, the model scores 7"):
            evaluate(model_file(text, w=table), tokens=np.array([1, 9, 2, 3]), sequence=4)


def test_accuracy_counts_right_classes(model_file, tmp_path):
    weights = np.float32(np.eye(4, 3))
    x = np.float32(np.eye(4)[[0, 1, 2, 0, 1]])
    path = model_file(CLASSIFIER, w=weights)
    np.savez(tmp_path / "data.npz", x=x, labels=np.array([0, 1, 1, 0, 2]))
    done = []
    made = evaluate(path, data=tmp_path / "data.npz", batch=2, progress=lambda *at: done.append(at))
    assert (made.metric, made.value, made.samples, made.nll, made.tokens) == ("accuracy", 0.6, 5, None, 0)
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert evaluate(path, data={"x": x}, labels=np.array([0, 1, 2, 0, 1])).value == 1.0
    assert evaluate(path, data={"x": x}, labels=np.array([0, 1, 0, 0, 0]), limit=2).value == 1.0


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "accuracy needs labels"),
        (np.array([0, 1]), r"one class number a sample \(3\), not int64\[2\]"),
        (np.zeros(3), r"not float64\[3\]"),
        (np.zeros((3, 3), int), r"not int64\[3, 3\]"),
        (np.array([0, 1, 3]), "label 3, the model has 3 classes"),
        (np.array([0, -1, 0]), "label -1, the model has 3 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, says, model_file):
    with pytest.raises(DataError, match=says):
        evaluate(model_file(CLASSIFIER, w=np.float32(np.eye(4, 3))), data={"x": np.ones((3, 4))}, labels=labels)


def test_classes_scored_nan_are_an_error(model_file):
    with pytest.raises(NonFiniteError, match="samples 0 to 1"):
        evaluate(
            model_file(CLASSIFIER, w=np.full((4, 3), np.nan, np.float32)),
            data={"x": np.ones((2, 4))},
            labels=np.array([0, 0]),
        )


def test_a_model_without_scores_is_refused(model_file):
    with pytest.raises(DataError, match="no output has 3 dimensions"):
        evaluate(model_file("g (int64[B,S] x) => (int64[B,S] y) { y = Neg(x) }"), tokens=TOKENS, sequence=4)


def test_exactly_one_kind_of_data_is_given(model_file):
    path = model_file(LM, w=TABLE)
    for given in ({}, {"tokens": TOKENS, "data": {"x": TOKENS}}):
        with pytest.raises(UsageError, match="either tokens"):
            evaluate(path, **given)
    with pytest.raises(UsageError, match="at least 2"):
        evaluate(path, tokens=TOKENS, sequence=1)
    with pytest.raises(DataError, match="one array"):
        evaluate(path, tokens={"x": TOKENS})


def test_the_measurement_says_how_the_weights_ran_and_goes_into_json(model_file):
    text = "g (float[B,64] x) => (float[B,32] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    path = model_file(text, w=np.ones((64, 32), ml_dtypes.int4), s=np.float32(1))
    made = evaluate(path, data={"x": np.ones((2, 64))}, labels=np.array([0, 0]), accuracy_level=0)
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["execution"]["fused"] == [{"bits": 4, "accuracy_level": 0, "count": 1}]
    assert told["metric"] == "accuracy"


def test_the_sample_language_model_has_the_perplexity_it_states():
    stated = json.loads((CODE_LM / "float.json").read_text())
    made = evaluate(
        CODE_LM / "model.onnx",
        tokens=CODE_LM / "heldout.npy",
        sequence=stated["window"],
        limit=stated["subset_windows"],
    )
    assert made.value == pytest.approx(stated["subset_perplexity"], rel=1e-5)
