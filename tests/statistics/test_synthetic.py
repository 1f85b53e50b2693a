"""Data from the input specs: fits the model, is the same each time, and says what it is."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxq.api import quantize_proto
from onnxq.errors import SessionError
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Request

LANGUAGE = """g (int32[n, s] input_ids, int64[n, s] attention_mask, int64[n, s] position_ids) => (float[n, s, 6] h) {
    i = Cast <to = 7> (input_ids) e = Gather(w, i) p = Gather(v, position_ids) h = Add(e, p) }"""


def batches(model, **settings):
    calibration = Calibration("synthetic", **settings)
    assert calibration.is_synthetic
    return list(calibration.batches(model))


def test_tokens_are_all_of_the_vocabulary(model, integers):
    loaded = model(LANGUAGE, w=integers(37, 6), v=integers(99, 6))
    made = batches(loaded, sequence=64, samples=32, batch=16)
    tokens = np.concatenate([each.inputs["input_ids"] for each in made])
    assert tokens.shape == (32, 64)
    assert set(tokens.reshape(-1).tolist()) == set(range(37))
    assert all((each.inputs["attention_mask"] == 1).all() for each in made)
    assert made[0].inputs["position_ids"][0].tolist() == list(range(64))


def test_a_fixed_length_of_windows_wins(model, integers):
    loaded = model("g (int64[n, 8] input_ids) => (float[n, 8, 6] h) { h = Gather(w, input_ids) }", w=integers(37, 6))
    assert batches(loaded, samples=1)[0].inputs["input_ids"].shape == (1, 8)


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("float[n, 3, 8, 9] x", (4, 3, 8, 9), np.float32),
        ("float16[4, 3, a, b] x", (4, 3, 64, 64), np.float16),
        ("float[n, s, 5] x", (4, 20, 5), np.float32),
        ("double[3, 5] x", (3, 5), np.float64),
        ("uint8[n, 8, 8, 3] x", (4, 8, 8, 3), np.uint8),
        ("bool[n, 6] x", (4, 6), np.bool_),
        ("float x", (), np.float32),
    ],
)
def test_inputs_of_every_kind(text, shape, dtype, model):
    code, dims = text.removesuffix(" x").partition("[")[0], text.removesuffix(" x").partition("[")[2]
    loaded = model(f"g ({text}) => ({code}{'[' + dims if dims else ''} y) {{ y = Identity(x) }}")
    first, *_ = batches(loaded, sequence=20, samples=6)
    assert first.inputs["x"].shape == shape
    assert first.inputs["x"].dtype == dtype


def test_floats_are_normal_and_differ_by_sample(model):
    (first,) = batches(model("g (float[n, 1000] x) => (float[n, 1000] y) { y = Neg(x) }"), samples=2)
    a, b = first.inputs["x"]
    assert abs(a.mean()) < 0.1
    assert abs(a.std() - 1) < 0.1
    assert not np.array_equal(a, b)


def test_indices_of_another_table_fit_it(model, integers):
    text = """g (float[n, 3] x, int64[n] kind) => (float[n, 3] y) { u = Unsqueeze(kind, axis) q = Squeeze(u, axis)
        e = Gather(w, q) y = Add(x, e) }"""
    loaded = model(text, w=integers(5, 3), axis=np.array([1]))
    seen = np.concatenate([each.inputs["kind"] for each in batches(loaded, samples=100)])
    assert set(seen.tolist()) == set(range(5))


def test_inputs_without_a_common_batch(model):
    loaded = model("g (float[2, 3] x, float[5] y, float z) => (float[2, 3] a) { a = Add(x, z) }")
    (first, second) = batches(loaded, samples=2)
    assert [first.inputs[name].shape for name in "xyz"] == [(2, 3), (5,), ()]
    assert not np.array_equal(first.inputs["y"], second.inputs["y"])


def test_it_is_the_same_each_time_and_is_told(model):
    loaded = model("g (float[n, 6] x) => (float[n, 6] h) { h = Neg(x) }")
    first, second = (
        collect(loaded, [Request("h", 6, ("hessian",))], Calibration("synthetic", batch=batch)) for batch in (4, 128)
    )
    assert first.synthetic
    assert first.samples == 128
    assert np.allclose(first.get("h", "hessian"), second.get("h", "hessian"))


def test_an_image_has_the_channels_that_the_convolution_wants(model, integers):
    loaded = model(
        "g (float[n, c, h, w] x) => (float[n, 6, a, b] y) { z = Mul(x, s) y = Conv<group=2>(z, v) }",
        v=integers(6, 3, 2, 2),
        s=integers(6, 1, 1),
    )
    (first,) = batches(loaded, samples=1)
    assert first.inputs["x"].shape == (1, 6, 64, 64)


def test_what_has_one_name_has_one_size(model):
    loaded = model(
        """g (float[n, 4, seen, 16] key, float[n, seen] mask, float[n, 4, past_sequence_length, 16] past)
        => (float[n, 4, seen, 16] y) { y = Neg(key) }"""
    )
    (first,) = batches(loaded, samples=1, sequence=20)
    assert first.inputs["mask"].shape == (1, 20)
    assert first.inputs["key"].shape == first.inputs["past"].shape == (1, 4, 20, 16)


def test_where_it_does_not_fit_real_data_is_asked_for(model, integers):
    text = "g (float[n, a, b] x) => (float[n, a, 4] y) { z = Add(x, bias) y = MatMul(z, w) }"
    loaded = model(text, bias=integers(7, 5), w=integers(5, 4))
    with pytest.raises(SessionError, match=r"synthetic, and .* guesses: give real data"):
        collect(loaded, [Request("z", 5, ("hessian",))], Calibration("synthetic", sequence=12, samples=1))


def test_a_rounded_image_keeps_its_channels(integers):
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (float[n, c, h, w] x) => (float[n, 4, a, b] y) { z = Conv(x, v) r = Relu(z) y = Conv(r, u) }"""
    proto = parser.parse_model(text)
    for name, shape in (("v", (4, 3, 3, 3)), ("u", (4, 4, 3, 3))):
        proto.graph.initializer.append(numpy_helper.from_array(integers(*shape), name))
    _, report = quantize_proto(proto, "w6a6-fp", calibration=Calibration("synthetic", samples=2))
    assert len(report.quantized) == 2
