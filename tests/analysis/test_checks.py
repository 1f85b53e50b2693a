"""Abilities and robustness on models whose answers are known."""

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.analysis.abilities import abilities
from onnxq.analysis.robustness import attack, robustness
from onnxq.errors import DataError, UsageError

SAMPLES = Path(__file__).parents[2] / "samples"
VOCABULARY = 11
RNG = np.random.default_rng(0)
# Scores each token highest after itself plus one; a second head cannot be seen.
SUCCESSOR = """g (int64[B,S] input_ids) => (float[B,S,V] logits) { logits = Gather(table, input_ids) }"""
# A plane between two classes: the gradient is the same everywhere.
PLANE = "g (float[B,1,2,3] image) => (float[B,2] logits) { x = Flatten(image) logits = MatMul(x, w) }"


@pytest.fixture
def successor(model_file):
    return model_file(SUCCESSOR, table=np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1))


@pytest.fixture
def plane(model_file):
    normal = np.array([1, -2, 3, -4, 5, 0.5], np.float32)
    path = model_file(PLANE, w=np.stack([normal, -normal], axis=1))
    images = RNG.random((40, 1, 2, 3)).astype(np.float32)
    labels = (images.reshape(40, -1) @ normal < 0).astype(np.int64)
    return path, {"image": images, "labels": labels}, normal


def test_next_tokens_are_counted_where_the_highest_score_is_right(successor):
    text = np.arange(60) % VOCABULARY
    text[::6] = 0
    right = sum((text[at + 1] - text[at]) % VOCABULARY == 1 for at in range(59) if at % 20 != 19)
    found = abilities(successor, text, sequence=20)
    assert (found.next_token, found.tokens) == (right / 57, 57)


def test_copying_counts_the_second_time_only(successor):
    """A model that only knows successors copies no better than it guesses."""
    text = RNG.integers(0, VOCABULARY, 400)
    found = abilities(successor, text, sequence=21, prompts=50)
    assert found.copied == 50 * 9
    assert found.copying == found.unseen
    assert 0 < found.copying < 0.25


def test_a_language_model_copies_better_than_it_guesses():
    found = abilities(SAMPLES / "code_lm" / "model.onnx", SAMPLES / "code_lm" / "heldout.npy", limit=2, prompts=4)
    assert found.copying > 0.2 > 0.05 > found.unseen
    assert found.next_token > 0.4


def test_an_attack_goes_along_the_signs_of_the_gradient(plane):
    path, data, normal = plane
    made = attack(path, data, strength=0.05)
    assert made.exact
    low, high = data["image"].min(), data["image"].max()
    away = np.where(data["labels"] == 0, -1, 1)[:, None] * np.sign(normal)
    wanted = np.clip(data["image"].reshape(40, -1) + made.strength * away, min(low, 0), high)
    assert np.allclose(made.attacked.reshape(40, -1), wanted, atol=1e-6)
    assert np.abs(made.noise - made.clean).max() <= made.strength + 1e-6


def test_accuracy_falls_most_where_it_is_attacked(plane):
    path, data, _ = plane
    found = robustness(path, attack(path, data, strength=0.1))
    assert found.clean == 1.0 > found.attacked
    assert found.noise > found.attacked
    assert found.samples == 40


def test_an_estimate_from_random_directions_is_told_as_such(plane):
    path, data, _ = plane
    made = attack(path, data, strength=0.2, queries=8)
    assert not made.exact
    assert robustness(path, made).attacked < 0.8
    again = attack(path, data, strength=0.2, queries=8)
    assert (made.attacked == again.attacked).all()


def test_an_attack_made_on_the_float_model_is_shown_to_the_quantized_one(tmp_path):
    folder = SAMPLES / "digits"
    made = attack(folder / "vit.onnx", folder / "test.npz", limit=12)
    onnxq.quantize(folder / "vit.onnx", "int4", output=tmp_path / "q.onnx")
    plain, small = (robustness(path, made) for path in (folder / "vit.onnx", tmp_path / "q.onnx"))
    assert plain.clean == small.clean == 1.0
    assert plain.attacked < 1.0
    assert small.attacked < 1.0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"strength": 0}, UsageError),
        ({"strength": float("nan")}, UsageError),
        ({"queries": 1}, UsageError),
        ({"data": None}, DataError),
    ],
)
def test_attacks_that_cannot_be_made_are_refused(plane, arguments, error):
    path, data, _ = plane
    given = {"image": data["image"]} if "data" in arguments else data
    with pytest.raises(error):
        attack(path, given, **{name: value for name, value in arguments.items() if name != "data"})


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_the_model_lacks_are_named(plane, label):
    path, data, _ = plane
    with pytest.raises(DataError, match=f"label {label}, the model has 2 classes"):
        attack(path, {**data, "labels": np.full(40, label)})


def test_an_empty_text_is_named(successor):
    with pytest.raises(DataError, match="no tokens"):
        abilities(successor, np.zeros(0, np.int64), sequence=20)


def test_a_language_model_cannot_be_attacked(successor):
    with pytest.raises(DataError, match="2 dimensions"):
        attack(successor, {"input_ids": np.zeros((2, 3), np.int64), "labels": np.zeros(2, np.int64)})
