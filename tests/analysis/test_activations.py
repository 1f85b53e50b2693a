import numpy as np
import pytest

from onnxq.analysis.inspect import inspect
from onnxq.statistics.calibration import Calibration

MODEL = """
two (float[b, 16] x) => (float[b, 4] y, float[b, 4] z) {
  h = Relu(x)
  y = MatMul(h, first)
  z = MatMul(h, second)
}
"""


@pytest.fixture
def path(model_file):
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(16, 4)).astype(np.float32) for _ in range(2))
    return model_file(MODEL, first=first, second=second)


def looked_at(path, x: np.ndarray):
    (found,) = inspect(path, calibration=Calibration({"x": x.astype(np.float32)}, samples=None)).activations
    return found


def test_range_and_channels_are_those_of_the_data(path):
    x = np.random.default_rng(1).normal(size=(600, 16))
    found = looked_at(path, x)
    assert (found.tensor, found.weights, found.channels) == ("h", ("first", "second"), 16)
    assert (found.low, found.high) == (0.0, np.float32(x.max()))
    typical = np.quantile(np.maximum(x, 0), 0.999)
    assert found.spike == pytest.approx(x.max() / typical, rel=0.02)
    assert found.outlier_channels == 0
    assert found.remedies == ()


def test_a_spike_and_an_outlier_channel_are_told_with_what_would_help(path):
    rng = np.random.default_rng(2)
    spiked = rng.normal(size=(600, 16))
    spiked[3, 5] = 200.0
    found = looked_at(path, spiked)
    assert found.spike > 40
    assert any("spikes of" in text and "rotate" in text for text in found.remedies)
    wide = rng.normal(size=(600, 16))
    wide[:, 7] *= 100
    found = looked_at(path, wide)
    assert found.outlier_channels == 1
    assert any("1 of 16 channels" in text and "smoothing" in text for text in found.remedies)


def test_without_data_nothing_is_run(path):
    assert inspect(path).activations == ()
