"""Each fit is what rounding the whole weight to nearest leaves; each remedy is measured."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from onnxq.analysis import remedies
from onnxq.analysis.inspect import inspect
from onnxq.analysis.weights import FORMATS, GRANULARITIES, RECIPES, WeightFit, fit_of
from onnxq.api import quantize_proto
from onnxq.model.load import from_proto
from onnxq.model.sites import find_weights
from onnxq.recipes import Recipe, Rule

SAMPLES = Path(__file__).parents[2] / "samples"
PRODUCT = """
<ir_version: 10, opset_import: ["": 21]>
product (float[b, K] x) => (float[b, N] y) { y = MatMul(x, w) }
"""


def model_of(weight: np.ndarray) -> onnx.ModelProto:
    made = parser.parse_model(PRODUCT)
    made.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return made


def fit(weight: np.ndarray) -> WeightFit:
    return fit_of(find_weights(from_proto(model_of(weight)).ir)[0])


def measured(weight: np.ndarray, recipe: str | Recipe) -> float:
    _, report = quantize_proto(model_of(weight), recipe, threads=1)
    (entry,) = report.entries
    assert entry.sqnr_db is not None, entry.reason
    return entry.sqnr_db


def weights() -> dict[str, np.ndarray]:
    """Larger than what is rounded to tell formats apart, and unlike each other."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(512, 1024)).astype(np.float32)
    uneven = normal * np.exp(rng.normal(size=1024)).astype(np.float32)
    few = normal.copy()
    few[:, 700:703] *= 50
    rows = normal.copy()
    rows[[3, 77], :] *= 40
    tails = rng.standard_t(4, size=(512, 1024)).astype(np.float32)
    return {"normal": normal, "uneven columns": uneven, "few columns": few, "few rows": rows, "heavy tails": tails}


@pytest.mark.parametrize("kind", weights())
def test_the_predicted_ratio_of_a_large_weight_is_within_half_a_decibel(kind):
    weight = weights()[kind]
    found = fit(weight)
    for recipe in RECIPES:
        assert found.sqnr_db[recipe] == pytest.approx(measured(weight, recipe), abs=0.5), recipe
    for name in FORMATS:
        for granularity, spec in GRANULARITIES.items():
            recipe = Recipe(rules=(Rule(weight=spec.model_copy(update={"format": (name,)})),))
            predicted = found.granularity_db[name][granularity]
            assert predicted == pytest.approx(measured(weight, recipe), abs=0.5), (name, granularity)


@pytest.mark.parametrize("sample", ["code_lm/model.onnx", "digits/resnet.onnx", "digits/vit.onnx"])
def test_the_predicted_ratio_is_within_half_a_decibel_on_every_layer_of_the_samples(sample):
    found = {each.name: each for each in inspect(SAMPLES / sample).weights}
    for recipe in ("fp6-e2m3", "fp4", "int8"):
        _, report = quantize_proto(onnx.load(SAMPLES / sample), recipe, threads=1)
        assert report.quantized
        for entry in report.quantized:
            assert found[entry.weight].sqnr_db[recipe] == pytest.approx(entry.sqnr_db, abs=0.5), (recipe, entry.weight)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 3.0]))
def test_the_spread_is_that_of_all_values(k, n, seed, mean):
    weight = (mean + np.random.default_rng(seed).standard_t(3, size=(k, n))).astype(np.float32)
    if (found := fit(weight).spread) is None:
        return
    exact = weight.astype(np.float64)
    assert (found.low, found.high) == (exact.min(), exact.max())
    assert (found.inputs, found.channels) == (k, n)
    if exact.var() > 0:
        kurtosis = ((exact - exact.mean()) ** 4).mean() / exact.var() ** 2
        assert found.kurtosis == pytest.approx(kurtosis, rel=1e-3)
    ranges = exact.max(axis=0) - exact.min(axis=0)
    assert found.channel_precision == pytest.approx(
        ranges.mean() / (exact.max() - exact.min() or 1), rel=1e-5, abs=1e-9
    )
    sizes = np.abs(weight).max(axis=1)
    assert found.outlier_inputs == np.count_nonzero(sizes > 6 * float(np.median(sizes)))


def test_convolutions_are_looked_at_channel_by_channel():
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    conv (float[b, 8, 9, 9] x) => (float[b, 6, 7, 7] y) { y = Conv(x, w) }
    """
    weight = np.random.default_rng(1).normal(size=(6, 8, 3, 3)).astype(np.float32)
    weight[2] *= 100
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = fit_of(find_weights(from_proto(proto).ir)[0]).spread
    assert found is not None
    assert (found.channels, found.inputs) == (6, 72)
    ranges = np.ptp(weight.reshape(6, -1), axis=1)
    assert found.channel_precision == pytest.approx(ranges.mean() / np.ptp(weight), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_cannot_be_quantized(bad):
    weight = np.ones((8, 8), np.float32)
    weight[1, 2] = weight[3, 4] = bad
    assert fit(weight).obstacle == "2 NaN or Inf values"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("normal", ()),
        ("few rows", ("heavy tails", "groups of 32 keep", "2 of 512 input channels over 6 times", "rotation")),
        ("few columns", ("average precision 0.0", "granularity: channel")),
    ],
)
def test_what_stands_out_comes_with_what_would_help(kind, words):
    texts = " ".join(remedies.of_weight(fit(weights()[kind])))
    assert bool(texts) == bool(words)
    for each in words:
        assert each in texts


def test_tails_that_an_exponent_bit_holds_better_ask_for_it():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(256, 64)).astype(np.float32) * np.exp(2 * rng.normal(size=(256, 1))).astype(np.float32)
    found = fit(weight)
    gain = measured(weight, "fp6-e3m2") - measured(weight, "fp6-e2m3")
    assert gain > 1
    assert f"FP6 E3M2 keeps {gain:.1f} dB more than E2M3" in " ".join(remedies.of_weight(found))


def test_low_channel_precision_means_six_decibels_for_a_scale_a_channel():
    """arXiv 2011.14578: the mean range of channels over the range of the layer."""
    rng = np.random.default_rng(3)
    for spread in (0.0, 1.0, 2.0, 3.0):
        weight = (rng.normal(size=(64, 256)) * np.exp(spread * rng.normal(size=256))).astype(np.float32)
        found = fit(weight)
        assert found.spread is not None
        if found.spread.channel_precision < 0.1:
            assert found.granularity_db["int8"]["channel"] - found.granularity_db["int8"]["tensor"] >= 6


def test_the_opsets_are_those_of_the_file():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["com.microsoft" : 1]>\n'
        "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
    )
    assert inspect(from_proto(model)).opsets == {"com.microsoft": 1}
