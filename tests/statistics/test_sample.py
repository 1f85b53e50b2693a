import numpy as np
import pytest
from onnx import parser

from onnxq.errors import NonFiniteError
from onnxq.model.load import from_proto
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.sample import sample_rows


@pytest.fixture
def model():
    return from_proto(
        parser.parse_model(
            """<ir_version: 8, opset_import: ["": 13]> g (float[n, 5, 3] x) => (float[n, 5, 3] z)
            { y = Neg(x) z = Neg(y) }"""
        )
    )


@pytest.fixture
def data():
    return np.arange(20 * 5 * 3, dtype=np.float32).reshape(20, 5, 3)


def test_every_seventh_row_in_order(model, data):
    found = sample_rows(model, {"y": 3, "x": 3}, Calibration(data, batch=20), 100)
    np.testing.assert_array_equal(found["x"], data.reshape(-1, 3)[::7])
    np.testing.assert_array_equal(found["y"], -found["x"])


def test_it_stops_at_so_many_rows(model, data):
    read = []

    def feeds():
        for number in range(20):
            read.append(number)
            yield {"x": data[number : number + 1]}

    found = sample_rows(model, {"y": 3}, Calibration(feeds()), 4)
    assert found["y"].shape == (4, 3)
    assert len(read) == 4


def test_nothing_to_look_at(model, data):
    assert sample_rows(model, {}, Calibration(data), 4) == {}


def test_a_value_that_is_not_finite_is_named(model, data):
    data[2, 4, 1] = -np.inf
    with pytest.raises(NonFiniteError, match=r"'y'.*sample 0 to 19"):
        sample_rows(model, {"y": 3}, Calibration(data, batch=20), 100)
