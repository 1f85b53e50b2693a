import json
import math

import ml_dtypes
import numpy as np
import pytest

from onnxq.analysis import compare as module
from onnxq.analysis.compare import compare
from onnxq.errors import UsageError

RNG = np.random.default_rng(0)
MLP = """g (float[B,64] x) => (float[B,8] y) {
    h = MatMul(x, w)
    r = Tanh(h)
    t = Transpose(v)
    y = MatMul(r, t)
}"""
W, V = RNG.normal(size=(64, 32)).astype(np.float32), RNG.normal(size=(8, 32)).astype(np.float32)
X = RNG.normal(size=(5, 64)).astype(np.float32)


def two(model_file, **changed):
    weights = {"w": W, "v": V}
    return model_file(MLP, "a.onnx", **weights), model_file(MLP, "b.onnx", **weights | changed)


def test_equal_models_have_no_difference(model_file):
    made = compare(*two(model_file), data=X)
    assert [each.name for each in made.outputs] == ["y"]
    assert [(each.name, each.operator) for each in made.layers] == [("h", "MatMul"), ("r", "Tanh")]
    assert all(
        each.sqnr_db == math.inf and each.cosine == 1 and each.max_abs == 0 for each in made.layers + made.outputs
    )
    assert made.samples == 5


@pytest.mark.parametrize("group", [1, 32])
@pytest.mark.parametrize("batch", [1, 2])
def test_differences_are_those_of_the_tensors_over_all_samples(group, batch, model_file, monkeypatch):
    monkeypatch.setattr(module, "_GROUP", group)
    near = W + np.float32(0.01)
    made = compare(*two(model_file, w=near), data=X, batch=batch)
    h, other = X.astype(np.float64) @ W, X.astype(np.float64) @ near
    for name, a, b in (
        ("h", h, other),
        ("r", np.tanh(h), np.tanh(other)),
        ("y", np.tanh(h) @ V.T, np.tanh(other) @ V.T),
    ):
        (found,) = [each for each in made.layers + made.outputs if each.name == name]
        assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)
        assert found.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-3)
        assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)


def test_the_worst_come_first_and_the_broken_before_all(model_file):
    text = """g (float[B,64] x) => (float[B,64] y) {
        little = Mul(x, p)
        much = Mul(x, q)
        broken = Mul(x, n)
        y = Sum(little, much, broken)
    }"""
    same = {"p": np.float32(1), "q": np.float32(1), "n": np.float32(1)}
    a = model_file(text, "a.onnx", **same)
    b = model_file(text, "b.onnx", **same | {"p": np.float32(1.1), "q": np.float32(2), "n": np.float32(np.nan)})
    made = compare(a, b, data=X)
    assert [each.name for each in made.worst()] == ["broken", "much", "little"]
    assert [each.name for each in made.worst(1)] == ["broken"]
    assert made.worst()[0].nonfinite == X.size
    assert [each.name for each in made.layers] == ["little", "much", "broken"]


def test_without_layers_only_outputs_are_compared(model_file):
    assert compare(*two(model_file), data=X, per_layer=False).layers == ()


def test_a_quantized_weight_stays_fused_while_its_neighbours_are_compared(model_file):
    codes = np.clip(np.rint(W * 3), -8, 7).astype(ml_dtypes.int4)
    text = "g (float[B,64] x) => (float[B,32] y) {{ {} h = MatMul(x, f) y = Tanh(h) }}"
    a = model_file(text.format("f = Transpose(w)"), "a.onnx", w=W.T.copy())
    b = model_file(text.format("f = DequantizeLinear(w, s)"), "b.onnx", w=codes, s=np.float32(1 / 3))
    made = compare(a, b, data=X, accuracy_level=0)
    assert [each.name for each in made.layers] == ["h"], "the weight f is made in both, but depends on no input"
    exact = X.astype(np.float64) @ W
    off = exact - X.astype(np.float64) @ (codes.astype(np.float64) / 3)
    assert made.layers[0].sqnr_db == pytest.approx(10 * np.log10((exact**2).sum() / (off**2).sum()), abs=0.01)
    assert (made.execution[0].plain, made.execution[1].fused[0].count) == (1, 1)


def test_tensors_of_other_shape_or_type_are_skipped_with_the_reason(model_file):
    text = "g (float[B,64] x) => (float[B,64] y) {{ r = {} i = Shape(x) z = Neg(x) y = Add(x, z) }}"
    a = model_file(text.format("Relu(x)"), "a.onnx")
    b = model_file(text.format("Transpose(x)"), "b.onnx")
    made = compare(a, b, data=X)
    assert [each.name for each in made.layers] == ["z"]
    assert made.skipped == {
        "r": "shapes differ: [1, 64] in a, [64, 1] in b",
        "i": "not floats: int64 in a, int64 in b",
    }


def test_models_of_other_precision_are_fed_their_own(model_file):
    half = MLP.replace("float", "float16")
    a = model_file(MLP, "a.onnx", w=W, v=V)
    b = model_file(half, "b.onnx", w=W.astype(np.float16), v=V.astype(np.float16))
    made = compare(a, b, data=X)
    assert 40 < made.outputs[0].sqnr_db < 80


def test_models_without_a_common_output_are_refused(model_file):
    a, b = model_file(MLP, "a.onnx", w=W, v=V), model_file(MLP.replace("y", "z"), "b.onnx", w=W, v=V)
    with pytest.raises(UsageError, match="no output in common: a has y, b has z"):
        compare(a, b, data=X)


def test_models_of_other_fixed_batch_are_refused(model_file):
    a = model_file(MLP, "a.onnx", w=W, v=V)
    b = model_file(MLP.replace("B,", "4,"), "b.onnx", w=W, v=V)
    with pytest.raises(UsageError, match="run 1 and 4 samples at once"):
        compare(a, b, data=X)
    assert compare(a, b, data=X, batch=4).outputs[0].sqnr_db > 100


def test_progress_counts_every_run(model_file, monkeypatch):
    monkeypatch.setattr(module, "_GROUP", 1)
    done = []
    compare(*two(model_file), data=X, limit=3, progress=lambda *at: done.append(at))
    assert done == [(at, 6) for at in range(1, 7)]


def test_the_comparison_goes_into_json(model_file):
    made = compare(*two(model_file, v=V * np.float32(1.5)), data=X)
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["layers"][0] == {
        "name": "h",
        "operator": "MatMul",
        "module": "",
        "sqnr_db": None,
        "equal": True,
        "cosine": 1.0,
        "max_abs": 0.0,
        "nonfinite": 0,
    }
    assert told["outputs"][0]["sqnr_db"] == pytest.approx(10 * math.log10(1 / 0.25), abs=1e-3)
