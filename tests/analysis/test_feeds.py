import numpy as np
import pytest

from onnxq.errors import DataError, UsageError
from onnxq.runtime.inputs import Input
from onnxq.statistics.feeds import array_feeds, feeds_for, token_feeds


def tokens_in(*shape):
    return (Input("input_ids", np.dtype(np.int64), shape or ("b", "s")),)


X = Input("x", np.dtype(np.float32), ("batch", 3))
Y = Input("y", np.dtype(np.int64), ("batch",))


def test_tokens_are_cut_into_windows_without_overlap():
    feeds = feeds_for(np.arange(11, dtype=np.uint16), tokens_in(), sequence=3, batch=2)
    assert (feeds.samples, feeds.batches) == (3, 2)
    assert [feed.inputs["input_ids"].tolist() for feed in feeds] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    assert [feed.rows for feed in feeds] == [2, 1]


def test_a_limit_counts_windows():
    assert feeds_for(np.arange(100), tokens_in(), sequence=4, limit=3).samples == 3


def test_a_batch_that_the_model_fixes_is_filled_by_repeating():
    feeds = list(token_feeds(np.arange(6), tokens_in(2, "s"), sequence=2, batch=8))
    assert feeds[-1].inputs["input_ids"].tolist() == [[4, 5], [4, 5]]
    assert [feed.rows for feed in feeds] == [2, 1]


@pytest.mark.parametrize(
    ("tokens", "inputs", "says"),
    [
        (np.arange(5), tokens_in(), "5 tokens, fewer than one sequence of 8"),
        (np.arange(50), tokens_in("b", 16), "takes sequences of 16 tokens, not 8: pass sequence=16"),
        (np.array([*range(9), -2] * 4), tokens_in(), "token 9 of the data is -2"),
        (np.ones((4, 8), np.int64), tokens_in(), r"one-dimensional integer array, not int64\[4, 8\]"),
        (np.ones(80, np.float32), tokens_in(), r"one-dimensional integer array, not float32\[80\]"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, inputs, says):
    with pytest.raises(DataError, match=says):
        token_feeds(tokens, inputs, sequence=8)


def test_a_stream_that_is_no_integers_is_no_tokens():
    with pytest.raises(DataError, match=r"a stream of tokens is integers, and the data is float32\[80\]"):
        feeds_for(np.ones(80, np.float32), tokens_in())


@pytest.mark.parametrize("size", ["sequence", "batch", "limit"])
def test_sizes_are_positive(size):
    with pytest.raises(UsageError, match=f"{size} is 0"):
        token_feeds(np.arange(9), tokens_in(), **{size: 0})


def test_arrays_are_cut_along_the_first_axis_and_cast():
    arrays = {"x": np.arange(15.0).reshape(5, 3), "y": np.uint8([1, 2, 3, 4, 5]), "labels": np.arange(5)}
    feeds = array_feeds(arrays, (X, Y), batch=2)
    first, _, last = feeds
    assert first.inputs["x"].dtype == np.float32
    assert first.inputs["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert last.inputs["y"].tolist() == [5]
    assert feeds.labels.tolist() == [0, 1, 2, 3, 4]


def test_one_array_feeds_the_only_input():
    (feed,) = feeds_for(np.ones((2, 3), np.float32), (X,))
    assert feed.inputs["x"].shape == (2, 3)


def test_an_input_without_a_batch_axis_takes_one_sample_at_a_time():
    vector = Input("x", np.dtype(np.float32), (3,))
    feeds = array_feeds({"x": np.arange(6.0).reshape(2, 3)}, (vector,), batch=8)
    assert [feed.inputs["x"].tolist() for feed in feeds] == [[0, 1, 2], [3, 4, 5]]


def test_an_input_called_labels_is_an_input():
    labels = Input("labels", np.dtype(np.int64), ("batch",))
    feeds = array_feeds({"labels": np.arange(4)}, (labels,), batch=4)
    assert [feed.inputs["labels"].tolist() for feed in feeds] == [[0, 1, 2, 3]]
    assert feeds.labels is None


@pytest.mark.parametrize(
    ("arrays", "inputs", "says"),
    [
        ({"x": np.ones((2, 3)), "z": np.ones(2)}, (X,), "no input 'z'"),
        ({"X": np.ones((2, 3))}, (X,), "no input 'X': valid: x"),
        ({"x": np.ones((2, 3))}, (X, Y), r"no array for input 'y' int64\[batch\]; it has x"),
        ({"x": np.ones((2, 3)), "y": np.ones(3, int)}, (X, Y), "x has 2, y has 3"),
        ({"x": np.ones((2, 3)), "labels": np.ones(3, int)}, (X,), "x has 2, labels has 3"),
        ({"x": np.ones((0, 3))}, (X,), "x has 0"),
        ({"x": np.float32(1)}, (X,), "x has 0"),
        ({"x": np.ones((2, 4))}, (X,), r"'x' float32\[batch, 3\] does not fit data of shape \[2, 4\]"),
        ({"x": np.ones((2, 3, 1, 1))}, (X,), r"does not fit data of shape \[2, 3, 1, 1\]"),
        (
            {"x": np.ones((4, 3)), "y": np.ones((4,), int)},
            (Input("x", np.dtype(np.float32), (2, 3)), Input("y", np.dtype(np.int64), (4,))),
            "different batch sizes: x 2, y 4",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(arrays, inputs, says):
    with pytest.raises(DataError, match=says):
        array_feeds(arrays, inputs)


def test_one_array_for_several_inputs_is_refused():
    with pytest.raises(DataError, match="one array does not feed 2 inputs"):
        feeds_for(np.ones((2, 3)), (X, Y))
