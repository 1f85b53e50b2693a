import numpy as np
import pytest

from onnxq.errors import DataError
from onnxq.runtime.inputs import Input, token_feed, token_input

IDS = Input("input_ids", np.dtype(np.int64), ("batch", "sequence"))
TOKENS = np.array([[5, 6, 7], [8, 9, 1]])


def test_the_inputs_that_go_with_tokens_are_made_by_name():
    inputs = (
        IDS,
        Input("attention_mask", np.dtype(np.int64), ("batch", "sequence")),
        Input("position_ids", np.dtype(np.int32), ("batch", "sequence")),
        Input("token_type_ids", np.dtype(np.int64), ("batch", "sequence")),
        Input("past_key_values.0.key", np.dtype(np.float16), ("batch", 4, "past", 16)),
    )
    feed = token_feed(inputs, TOKENS)
    assert list(feed) == [each.name for each in inputs]
    assert all(feed[each.name].dtype == each.dtype for each in inputs)
    assert feed["input_ids"].tolist() == TOKENS.tolist()
    assert feed["attention_mask"].tolist() == [[1, 1, 1]] * 2
    assert feed["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert feed["token_type_ids"].tolist() == [[0, 0, 0]] * 2
    assert feed["past_key_values.0.key"].shape == (2, 4, 0, 16)


@pytest.mark.parametrize(
    "other",
    [
        Input("pixels", np.dtype(np.float32), ("batch", 3, 8, 8)),
        Input("attention_mask", np.dtype(np.float32), ("batch", 1, "sequence", "sequence")),
        Input("past_key_values.0.key", np.dtype(np.float32), ("batch", 4, 128, 16)),
        Input("past_key_values.0.key", np.dtype(np.float32), ("batch", "heads", "past", 16)),
    ],
    ids=str,
)
def test_an_input_that_tokens_do_not_determine_is_named(other):
    with pytest.raises(DataError, match=f"input '{other.name}' .* cannot be made from tokens"):
        token_feed((IDS, other), TOKENS)


def test_the_only_integer_matrix_takes_tokens_whatever_its_name():
    ids = Input("tokens", np.dtype(np.int32), (1, "n"))
    assert token_input((Input("past.0", np.dtype(np.float32), (1, 2, "p", 4)), ids)) is ids


def test_no_or_several_inputs_for_tokens_are_refused():
    pixels = Input("pixels", np.dtype(np.float32), ("batch", 3))
    pair = [Input(name, np.dtype(np.int64), ("b", "n")) for name in ("question", "answer")]
    for inputs in ([pixels], pair):
        with pytest.raises(DataError, match="no input takes token ids"):
            token_input(inputs)
