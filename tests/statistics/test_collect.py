"""Statistics that onnxruntime computes equal those that numpy computes in float64 from the activations themselves."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.api import quantize_proto
from onnxq.errors import DataError, ModelError, NonFiniteError
from onnxq.model import temporary
from onnxq.model.load import from_proto
from onnxq.runtime.session import session
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.reductions import BINS, CHANNEL_BINS, REDUCTIONS
from onnxq.statistics.requests import Request, merged

TEXT = "g (float[n, 6] x) => (float[n, 4] y, float[n, 6] z) { h = Relu(x) y = MatMul(h, w) z = Neg(h) }"
W = np.ones((6, 4), np.float32)
KINDS = tuple(kind for kind in REDUCTIONS if kind != "cross")


def of_range(x, bins):
    """Counts of equal bins between the smallest and the largest; all in the first where those are one."""
    if x.min() == x.max():
        return np.eye(1, bins)[0] * x.size
    return np.histogram(x, np.linspace(x.min(), x.max(), bins + 1))[0]


# What numpy says, from all rows [n, K] in float64.
EXPECTED = {
    "hessian": lambda x: x.T @ x,
    "channel_absmax": lambda x: np.abs(x).max(0),
    "channel_min": lambda x: x.min(0),
    "channel_max": lambda x: x.max(0),
    "channel_sum": lambda x: x.sum(0),
    "channel_abs_sum": lambda x: np.abs(x).sum(0),
    "channel_square_sum": lambda x: (x * x).sum(0),
    "absmax": lambda x: np.abs(x).max(),
    "min": lambda x: x.min(),
    "max": lambda x: x.max(),
    "sum": lambda x: x.sum(),
    "channel_histogram": lambda x: np.stack([of_range(channel, CHANNEL_BINS) for channel in x.T]),
    "histogram": lambda x: of_range(x, BINS),
}


def test_every_kind_has_an_expectation() -> None:
    assert set(EXPECTED) == set(KINDS)


@pytest.mark.parametrize("opset", range(11, 24))
def test_answers_are_exact_at_every_opset(opset, model, integers):
    x = integers(11, 6)
    found = collect(model(TEXT, opset, w=W), [Request("h", 6, KINDS), Request("x", 6, KINDS)], Calibration(x))
    for tensor, rows in (("h", np.maximum(x, 0)), ("x", x)):
        for kind, expected in EXPECTED.items():
            answer = found.get(tensor, kind)
            assert answer.dtype == np.float64
            assert np.array_equal(answer, expected(rows.astype(np.float64))), kind
        assert found.rows(tensor) == 11
        assert found.mean(tensor) == pytest.approx(rows.mean())
        assert found.channel_mean(tensor) == pytest.approx(rows.mean(0))
    assert found.samples == 11
    assert not found.synthetic


def test_a_model_that_is_too_old_is_told_the_way_out(model, integers):
    with pytest.raises(ModelError, match=r"need opset 11, the model has 10: use onnx\.version_converter"):
        collect(model(TEXT, 10, w=W), [Request("h", 6, ("min",))], Calibration(integers(11, 6)))


def test_a_model_of_custom_operators_alone_has_no_opset_that_could_be_too_old(integers):
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["com.microsoft" : 1]>\n'
        "g (float[n, 6] x) => (float[n, 6] y) { y = com.microsoft.QuickGelu<alpha=0.0>(x) }"
    )
    x = integers(11, 6)
    found = collect(from_proto(proto), [Request("x", 6, KINDS), Request("y", 6, KINDS)], Calibration(x))
    for tensor, rows in (("x", x), ("y", x / 2)):
        for kind, expected in EXPECTED.items():
            assert np.array_equal(found.get(tensor, kind), expected(rows.astype(np.float64))), kind


@pytest.mark.parametrize("recipe", ["int4-gptq", "int4-awq", "w8a8", "w8a8-smooth", "w6a6-fp", "w4a4-rotate"])
def test_a_model_of_custom_operators_alone_is_calibrated(recipe, integers):
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["com.microsoft" : 1]>\n'
        "g (float[n, 256] x) => (float[n, 32] y) "
        "{ h = com.microsoft.QuickGelu(x) y = com.microsoft.FusedMatMul<alpha=0.5>(h, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(integers(256, 32) / 64, "w"))
    x = integers(32, 256)
    made, report = quantize_proto(proto, recipe, calibration=Calibration(x))
    assert report.quantized
    onnx.checker.check_model(made, full_check=True)
    before, after = (session(each.SerializeToString()).run(None, {"x": x})[0] for each in (proto, made))
    assert np.abs(after - before).max() < 0.3 * np.abs(before).max()


def test_floats_are_near_a_float64_sum(model):
    x = np.random.default_rng(1).standard_normal((4, 100, 6)).astype(np.float32) * 1e3
    found = collect(
        model("g (float[n, s, 6] x) => (float[n, s, 6] y) { y = Neg(x) }"),
        [Request("x", 6, ("hessian",))],
        Calibration(x, batch=1),
    )
    rows = x.reshape(-1, 6).astype(np.float64)
    assert np.allclose(found.get("x", "hessian"), rows.T @ rows, rtol=1e-6, atol=1e-6 * (rows.T @ rows).max())


def test_batches_are_added_in_float64(model):
    # 1 is lost beside 2^24 in float32.
    x = np.full((101, 1), 1, np.float32)
    x[0] = 4096
    found = collect(
        model("g (float[n, 1] x) => (float[n, 1] y) { y = Neg(x) }"),
        [Request("x", 1, ("hessian",))],
        Calibration(x, batch=1),
    )
    assert found.get("x", "hessian").item() == 2**24 + 100


@pytest.mark.parametrize(("code", "dtype"), [("float16", np.float16), ("double", np.float64), ("int32", np.int32)])
def test_tensors_of_other_types_are_seen_as_float32(code, dtype, model, integers):
    x = integers(9, 6).astype(dtype) * 100
    found = collect(
        model(f"g ({code}[n, 6] x) => ({code}[n, 6] y) {{ y = Identity(x) }}"),
        [Request("y", 6, ("hessian", "absmax", "histogram"))],
        Calibration(x),
    )
    rows = x.astype(np.float64)
    # Beyond the largest float16, which is 65504.
    assert np.array_equal(found.get("y", "hessian"), rows.T @ rows)
    assert found.get("y", "hessian").max() > 65504
    assert found.get("y", "histogram").sum() == rows.size


def test_cross_moments_of_two_tensors(model, integers):
    x = integers(2, 5, 6)
    text = "g (float[n, s, 6] x) => (float[n, s, 4] y, float[n, s, 6] r) { r = Relu(x) y = MatMul(r, w) }"
    asked = [Request("r", 6, ("cross",), other=("x", 6)), Request("x", 6, ("cross", "hessian"), other=("y", 4))]
    found = collect(model(text, w=W), asked, Calibration(x, batch=1))
    rows = x.reshape(-1, 6).astype(np.float64)
    relu = np.maximum(rows, 0)
    assert np.array_equal(found.get("r", "cross", other="x"), relu.T @ rows)
    assert np.array_equal(found.get("x", "cross", other="y"), rows.T @ (relu @ W))
    assert np.array_equal(found.get("x", "hessian"), rows.T @ rows)
    assert found.rows("r", other="x") == 10


@pytest.mark.parametrize("kind", ["histogram", "channel_histogram"])
@pytest.mark.parametrize("difference", [0, 1e-45, 1e-37])
def test_a_range_without_room_for_bins_is_one_bin(kind, difference, model):
    x = np.zeros((5, 1), np.float32)
    x[0] = difference
    found = collect(
        model("g (float[n, 1] x) => (float[n, 1] y) { y = Neg(x) }"), [Request("x", 1, (kind,))], Calibration(x)
    )
    counts = found.get("x", kind).reshape(-1)
    assert counts[0] == counts.sum() == 5


@pytest.mark.parametrize("samples", [1, 3, 8, 11])
def test_what_fills_up_a_fixed_batch_counts_nothing(samples, model, integers):
    x = integers(samples, 3, 6)
    # The samples of a batch do not lie together in h: the reshape mixes the axes.
    text = """g (float[4, 3, 6] x) => (float[12, 6] h) {
        t = Transpose <perm = [1, 0, 2]> (x) s = Constant <value_ints = [-1, 6]> () h = Reshape(t, s) }"""
    found = collect(model(text), [Request("h", 6, KINDS)], Calibration(x))
    rows = x.reshape(-1, 6).astype(np.float64)
    for kind, expected in EXPECTED.items():
        assert np.allclose(found.get("h", kind), expected(rows), rtol=0, atol=1e-9), kind
    assert found.rows("h") == len(rows)
    assert found.samples == samples


@pytest.mark.parametrize("budget", [1, 200, 10**6])
def test_the_budget_changes_the_number_of_passes_and_no_answer(budget, model, integers):
    seen = []
    asked = [Request("x", 6, KINDS), Request("h", 6, KINDS), Request("y", 4, ("hessian",))]
    calibration = Calibration(integers(7, 6), progress=lambda done, total: seen.append((done, total)))
    found = collect(model(TEXT, w=W), asked, calibration, budget_bytes=budget)
    alone = collect(model(TEXT, w=W), asked, calibration)
    assert found.answers.keys() == alone.answers.keys()
    assert all(np.array_equal(found.answers[key], each) for key, each in alone.answers.items())
    # Histograms are another pass; with a budget of nothing, each request is.
    passes = {1: 9, 200: 8, 10**6: 2}[budget]
    ours = seen[: 2 * passes]
    assert ours[-1] == (7 * passes, 7 * passes)
    assert [done for done, _ in ours] == sorted({done for done, _ in ours})


def test_a_large_model_is_written_once(model, integers, monkeypatch, tmp_path):
    x = integers(5, 32)
    big = model(
        "g (float[n, 32] x) => (float[n, 32] y) { h = MatMul(x, w) y = MatMul(h, v) }",
        w=integers(32, 32),
        v=integers(32, 32),
    )
    asked = [Request("x", 32, ("hessian",)), Request("h", 32, ("hessian",))]
    expected = collect(big, asked, Calibration(x))
    monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    listed = []
    calibration = Calibration(x, progress=lambda *_: listed.append(sorted(each.name for each in tmp_path.rglob("*.*"))))
    found = collect(big, asked, calibration, budget_bytes=1)
    assert all(np.array_equal(found.answers[key], each) for key, each in expected.answers.items())
    assert listed[-1] == ["model-1.onnx", "model-2.onnx", "model.onnx.data"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["channel_max", "hessian", "absmax", "rows"])
def test_an_activation_that_is_not_finite_is_named(bad, kind, model, integers):
    x = integers(7, 6)
    x[5, 2] = 0
    text = f"g (float[n, 6] x) => (float[n, 6] h) {{ z = Constant <value_float = {1 if bad == np.inf else 0}.0> () "
    # 1 / 0 and 0 / 0, where the data itself is finite.
    text += "a = Abs(x) d = Div(z, a) e = Mul(d, d) h = Relu(e) }"
    with pytest.raises(NonFiniteError, match="activation 'd' holds NaN or Inf on the calibration data, sample"):
        collect(model(text), [Request("d", 6, (kind,))], Calibration(x))


def test_the_samples_with_nan_are_named(model):
    x = np.ones((9, 6), np.float32)
    x[5] = -1
    with pytest.raises(NonFiniteError, match="'h' holds NaN or Inf on the calibration data, sample 4 to 7"):
        collect(
            model("g (float[n, 6] x) => (float[n, 6] h) { h = Sqrt(x) }"), [Request("h", 6, ("min",))], Calibration(x)
        )


def test_sums_that_leave_float32_are_named(model):
    x = np.full((2, 6), 1e30, np.float32)
    with pytest.raises(NonFiniteError, match="hessian of activation 'x' leaves float32"):
        collect(model(TEXT, w=W), [Request("x", 6, ("hessian",))], Calibration(x))


def test_a_tensor_that_is_not_there_is_named(model, integers):
    with pytest.raises(ModelError, match="no value 'hh'; did you mean 'h'"):
        collect(model(TEXT, w=W), [Request("hh", 6, ("min",))], Calibration(integers(2, 6)))


def test_statistics_say_what_they_lack(model, integers):
    found = collect(model(TEXT, w=W), [Request("h", 6, ("hessian",))], Calibration(integers(2, 6)))
    with pytest.raises(DataError, match=r"no hessian of 'z' \(axis -1\) among the statistics; .*valid: h"):
        found.get("z", "hessian")
    with pytest.raises(DataError, match="no absmax of 'h'"):
        found.get("h", "absmax")


def test_the_outputs_of_the_model_are_not_computed(model, integers):
    # Reshaping 6 channels to 7 fails in every run.
    text = """g (float[n, 6] x) => (float[a, b] y) {
        h = Relu(x) s = Constant <value_ints = [1, -1, 7, 5]> () y = Reshape(h, s) }"""
    found = collect(model(text), [Request("h", 6, ("max",))], Calibration(integers(2, 6)))
    assert found.get("h", "max") <= 8


def test_values_that_a_subgraph_reads_stay(model, integers):
    text = """g (float[n, 6] x) => (float[n, 6] z) {
        p = Neg(x) c = Constant <value = bool {1}> ()
        h = If (c) <then_branch = t () => (float[n, 6] a) { a = Relu(p) },
                    else_branch = e () => (float[n, 6] b) { b = Mul(p, p) }>
        z = Neg(h) }"""
    x = integers(3, 6)
    found = collect(model(text), [Request("h", 6, ("sum",))], Calibration(x))
    assert found.get("h", "sum") == np.maximum(-x, 0).sum()


@pytest.mark.parametrize("recipe", ["fp6", "fp4", "int4"])
def test_a_quantized_model_can_be_calibrated(recipe, proto, integers):
    rng = np.random.default_rng(3)
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("w", "v")}
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    small, _ = quantize_proto(proto(text, **weights), recipe)
    x = integers(8, 64)
    found = collect(from_proto(small), [Request("r", 64, ("hessian",))], Calibration(x))
    float_rows = np.maximum(x @ weights["w"], 0).astype(np.float64)
    expected = float_rows.T @ float_rows
    assert 0 < np.abs(found.get("r", "hessian") - expected).max() < 0.4 * expected.max()


def test_requests_about_one_tensor_become_one():
    asked = [
        Request("a", 4, ("hessian", "min")),
        Request("a", 4, ("hessian", "channel_sum")),
        Request("b", 2, ("max",)),
    ]
    assert [(each.tensor, each.kinds) for each in merged(asked)] == [
        ("a", ("hessian", "channel_sum")),
        ("a", ("min",)),
        ("b", ("max",)),
    ]
    with pytest.raises(ValueError, match="'a' has 4 channels, not 5"):
        merged([Request("a", 4, ("hessian",)), Request("a", 5, ("hessian",))])
