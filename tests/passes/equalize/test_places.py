"""In every dialect, scales go where they keep the function, and where they cannot the report says why."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.model.sites import find_weights
from onnxq.passes.equalize.places import find_places, products_of

I64 = np.int64
ATTENTION = """
  q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
  q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
  qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
  s = MatMul(qt, kt) p = Softmax(s) a = MatMul(p, vt)
  at = Transpose<perm=[0,2,1,3]>(a) o = Reshape(at, join) y = MatMul(o, wo)"""
SPLIT = {"split": np.array([0, 0, 2, 3], I64), "join": np.array([0, 0, 6], I64)}
SQUARES = {"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 6)}
GROUPED = """
  v = MatMul(x, wv) v4 = Reshape(v, split) vt = Transpose<perm=[0,2,1,3]>(v4) vu = Unsqueeze(vt, two)
  ve = Expand(vu, groups) vr = Reshape(ve, heads) p = Softmax(w) a = MatMul(p, vr)
  at = Transpose<perm=[0,2,1,3]>(a) o = Reshape(at, join) y = MatMul(o, wo)"""
FUSED = """
  q = MatMul(x, wqkv) b = Add(q, bias) r = Reshape(b, split) t = Transpose<perm=[2,0,3,1,4]>(r)
  q4 = Gather<axis=0>(t, i0) k4 = Gather<axis=0>(t, i1) v4 = Gather<axis=0>(t, i2)
  kt = Transpose<perm=[0,1,3,2]>(k4) s = MatMul(q4, kt) p = Softmax(s) a = MatMul(p, v4)
  at = Transpose<perm=[0,2,1,3]>(a) o = Reshape(at, join) y = MatMul(o, wo)"""
INDICES = {f"i{number}": np.array(number, I64) for number in range(3)}

# Name: (text, constants, opset, {activation: kind of site, or the reason}).
DIALECTS = {
    "LayerNormalization": (
        (
            "g (float[n,6] x) => (float[n,4] y, float[n,5] z)"
            "{ h = LayerNormalization(x, s, b) y = MatMul(h, v) z = Gemm<transB=1>(h, w, c) }"
        ),
        {"s": (6,), "b": (6,), "v": (6, 4), "w": (5, 6), "c": (5,)},
        20,
        {"h": "norm"},
    ),
    "RMSNormalization": (
        "g (float[n,6] x) => (float[n,4] y) { h = RMSNormalization(x, s) y = MatMul(h, v) }",
        {"s": (6,), "v": (6, 4)},
        23,
        {"h": "norm"},
    ),
    "decomposed RMSNorm": (
        (
            "g (float[b,n,6] x) => (float[b,n,4] y) { t = Pow(x, two) m = ReduceMean(t, last) e = Add(m, eps)"
            " r = Sqrt(e) d = Div(x, r) c = Cast<to=1>(d) h = Mul(s, c) f = Flatten<axis=-1>(h) l = MatMul(f, v)"
            " y = Reshape(l, to) }"
        ),
        {
            "s": (6,),
            "v": (6, 4),
            "two": np.array(2, np.float32),
            "eps": np.array(1e-5, np.float32),
            "last": np.array([-1], I64),
            "to": np.array([2, -1, 4], I64),
        },
        20,
        {"f": "norm"},
    ),
    "SkipSimplifiedLayerNormalization": (
        (
            "g (float[b,n,6] x, float[b,n,6] u) => (float[b,n,4] y, float[b,n,6] z)"
            "{ h, m, i, r = com.microsoft.SkipSimplifiedLayerNormalization(x, u, s) y = MatMul(h, v) z = Neg(r) }"
        ),
        {"s": (6,), "v": (6, 4)},
        20,
        {"h": "norm"},
    ),
    "SkipLayerNormalization": (
        (
            "g (float[b,n,6] x, float[b,n,6] u) => (float[b,n,4] y)"
            "{ h = com.microsoft.SkipLayerNormalization(x, u, s, b) y = MatMul(h, v) }"
        ),
        {"s": (6,), "b": (6,), "v": (6, 4)},
        20,
        {"h": "norm"},
    ),
    "GPT-2, Gemm behind a Reshape": (
        (
            "g (float[2,n,6] x) => (float[m,4] y)"
            "{ h = LayerNormalization(x, s, b) r = Reshape(h, flat) y = Gemm(r, v, c) }"
        ),
        {"s": (6,), "b": (6,), "v": (6, 4), "c": (4,), "flat": np.array([-1, 6], I64)},
        20,
        {"r": "norm"},
    ),
    "attention": (
        f"g (float[b,n,6] x) => (float[b,n,6] y) {{ {ATTENTION} }}",
        SQUARES | SPLIT,
        20,
        {"x": "input of the model", "o": "value"},
    ),
    "attention of grouped queries": (
        f"g (float[2,n,6] x, float[2,4,n,n] w) => (float[2,n,5] y) {{ {GROUPED} }}",
        {
            "wv": (6, 6),
            "wo": (12, 5),
            "split": np.array([0, 0, 2, 3], I64),
            "two": np.array([2], I64),
            "groups": np.array([1, 1, 2, 1, 1], I64),
            "heads": np.array([0, 4, -1, 3], I64),
            "join": np.array([0, 0, 12], I64),
        },
        20,
        {"x": "input of the model", "o": "value"},
    ),
    "attention of one product": (
        f"g (float[b,n,6] x) => (float[b,n,6] y) {{ {FUSED} }}",
        {"wqkv": (6, 18), "bias": (18,), "wo": (6, 6), "split": np.array([0, 0, 3, 2, 3], I64)}
        | INDICES
        | {"join": SPLIT["join"]},
        20,
        {"x": "input of the model", "o": "value"},
    ),
    "attention of one product, split": (
        (
            "g (float[b,n,6] x, float[b,n,n] p) => (float[b,n,4] y) { h = MatMul(x, w)"
            " q, k, v = Split<axis=-1>(h, sizes) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) m = Add(s, p)"
            " e = Softmax(m) o = MatMul(e, v) y = MatMul(o, u) }"
        ),
        {"w": (6, 15), "u": (7, 4), "sizes": np.array([4, 4, 7], I64)},
        20,
        {"x": "input of the model", "o": "value"},
    ),
    "Attention of ONNX": (
        (
            "g (float[b,n,6] x) => (float[b,n,5] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
            " o = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v) y = MatMul(o, wo) }"
        ),
        {"wq": (6, 12), "wk": (6, 6), "wv": (6, 6), "wo": (12, 5)},
        23,
        {"x": "input of the model", "o": "value"},
    ),
    "MultiHeadAttention": (
        (
            "g (float[b,n,6] x) => (float[b,n,5] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
            " o = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v) y = MatMul(o, wo) }"
        ),
        {"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 5)},
        20,
        {"x": "input of the model", "o": "value"},
    ),
    "gate": (
        (
            "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, wg) s = Sigmoid(a) g = Mul(a, s) u = Gemm(x, wu, c)"
            " d = Mul(g, u) y = MatMul(d, wd) }"
        ),
        {"wg": (6, 7), "wu": (6, 7), "c": (7,), "wd": (7, 4)},
        20,
        {"x": "input of the model", "d": "gate"},
    ),
    "Relu": (
        "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w) b = Add(a, c) r = Relu(b) y = MatMul(r, v) }",
        {"w": (6, 7), "c": (7,), "v": (7, 4)},
        20,
        {"x": "input of the model", "r": "linear"},
    ),
    "Gelu stops scales": (
        "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w) r = Gelu(a) y = MatMul(r, v) }",
        {"w": (6, 7), "v": (7, 4)},
        20,
        {"x": "input of the model", "r": "Gelu takes no scales"},
    ),
    "weight on the left": (
        "g (float[7,n] x) => (float[4,n] y) { a = MatMul(w, x) r = Relu(a) y = MatMul(v, r) }",
        {"w": (6, 7), "v": (4, 6)},
        20,
        {"x": "input of the model", "r": "linear"},
    ),
    "convolutions": (
        (
            "g (float[b,4,8,8] x) => (float[b,3] y) { a = Conv(x, w, c) n = BatchNormalization(a, s, t, m, var)"
            " r = Relu(n) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) d = Conv<group=2>(p, v) e = Relu(d)"
            " q = ReduceMean<keepdims=0>(e, axes) y = MatMul(q, u) }"
        ),
        {
            "w": (6, 4, 3, 3),
            "c": (6,),
            "s": (6,),
            "t": (6,),
            "m": (6,),
            "var": np.linspace(1, 2, 6, dtype=np.float32),
            "v": (4, 3, 3, 3),
            "u": (4, 3),
            "axes": np.array([2, 3], I64),
        },
        20,
        {"x": "input of the model", "p": "norm", "q": "linear"},
    ),
    "last token": (
        (
            "g (float[b,5,6] x) => (float[b,4] y) { h = LayerNormalization(x, s) t = Gather<axis=1>(h, at)"
            " y = MatMul(t, v) }"
        ),
        {"s": (6,), "v": (6, 4), "at": np.array(4, I64)},
        20,
        {"t": "norm"},
    ),
    "residual stops scales": (
        "g (float[n,6] x) => (float[n,6] y) { h = LayerNormalization(x, s) a = MatMul(h, v) y = Add(a, h) }",
        {"s": (6,), "v": (6, 6)},
        20,
        {"h": "Add reads it too"},
    ),
    "output stops scales": (
        "g (float[n,6] x) => (float[n,6] h, float[n,4] y) { h = LayerNormalization(x, s) y = MatMul(h, v) }",
        {"s": (6,), "v": (6, 4)},
        20,
        {"h": "'h' is an output of the model"},
    ),
    "shared weight stops scales": (
        (
            "g (float[n,6] x) => (float[n,6] y) { h = LayerNormalization(x, s) a = MatMul(h, v) r = Relu(a)"
            " y = MatMul(r, v) }"
        ),
        {"s": (6,), "v": (6, 6)},
        20,
        {"h": "weight 'v' is shared by 2 operators", "r": "weight 'v' is shared by 2 operators"},
    ),
    "square stops scales": (
        "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w) b = Mul(a, a) y = MatMul(b, v) }",
        {"w": (6, 7), "v": (7, 4)},
        20,
        {"x": "input of the model", "b": "it is multiplied by itself"},
    ),
    "what stands in both factors stops scales": (
        "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w) r = Relu(a) b = Mul(a, r) y = MatMul(b, v) }",
        {"w": (6, 7), "v": (7, 4)},
        20,
        {"x": "input of the model", "b": "Mul reads it too"},
    ),
    "values that are kept stop scales": (
        (
            "g (float[b,n,6] x) => (float[b,n,5] y, float[b,2,n,3] kept) { q = MatMul(x, wq) k = MatMul(x, wk)"
            " v = MatMul(x, wv) o, pk, kept = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)"
            " y = MatMul(o, wo) }"
        ),
        {"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 5)},
        20,
        {"x": "input of the model", "o": "com.microsoft::MultiHeadAttention keeps or packs its values"},
    ),
}


@pytest.mark.parametrize("step", ["method: smooth", "method: shift"])
@pytest.mark.parametrize("name", DIALECTS)
def test_scales_go_where_they_keep_the_function(name, step, model, equalized):
    text, constants, opset, expected = DIALECTS[name]
    _, _, report = equalized(model(text, opset, **constants), step)
    found = {each.place: each.done or each.reason for each in report.changes}
    assert found.keys() == expected.keys()
    for place, what in expected.items():
        wanted = f"in a {what} site" if what in ("norm", "value", "gate", "linear") else what
        assert wanted in str(found[place]), place


@pytest.mark.parametrize("name", [name for name in DIALECTS if "stop" in name and "shared" not in name])
def test_what_no_producer_scales_is_scaled_by_a_mul(name, model, equalized):
    text, constants, opset, expected = DIALECTS[name]
    before, after, report = equalized(model(text, opset, **constants), "method: smooth, insert: true")
    assert {each.place for each in report.changes if each.done == "by a Mul"} == {
        place for place, what in expected.items() if " " in what
    }
    muls = [sum(node.op_type == "Mul" for node in each.graph.node) for each in (before, after)]
    assert muls[1] - muls[0] == sum(each.done == "by a Mul" for each in report.changes)


def test_convolution_is_scaled_by_a_mul_along_its_channels(model, equalized):
    text, constants, opset, _ = DIALECTS["convolutions"]
    _, _, report = equalized(model(text, opset, **constants), "method: smooth, insert: true")
    assert {each.place: each.done for each in report.changes}["x"] == "by a Mul"


def test_sites_that_the_step_leaves_out_are_named(model, equalized):
    text, constants, opset, _ = DIALECTS["gate"]
    _, after, report = equalized(model(text, opset, **constants), "method: smooth, sites: norm")
    assert {each.place: each.reason for each in report.changes}["d"] == "a gate site, which the step leaves out"
    assert len(after.graph.node) == 6


def test_norm_that_only_onnxruntime_knows_takes_scales(model):
    text = "g (float[n,6] x) => (float[n,4] y) { h = SimplifiedLayerNormalization<axis=-1>(x, s) y = MatMul(h, v) }"
    made = ir.from_proto(model(text, s=(6,), v=(6, 4)))
    (place,) = find_places(products_of(find_weights(made), made.graph), {"v"})
    assert place.where == "in a norm site"
