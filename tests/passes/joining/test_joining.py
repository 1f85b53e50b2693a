"""Products of one input become one where the target has kernels for it, and the model computes what it did."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.stored import find_stored
from onnxq.api import quantize_proto
from onnxq.formats import get_format
from onnxq.formats.tiled import unpack_tiled
from onnxq.model.load import from_proto
from onnxq.recipes import parse_recipe

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
# Attention with 4 heads of 32 for queries and 2 for keys and values; past keys and values are empty.
ATTENTION = (
    "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
    "(q, k, v, past_key, past_value, last_token, total_tokens)"
)
ATTENTION_INPUTS = "float[1,5,256] x, float[1,2,0,32] past_key, float[1,2,0,32] past_value"
CACHE = "float[1,2,5,32] present_key, float[1,2,5,32] present_value"
MODELS = {
    "attention": f"""g ({ATTENTION_INPUTS}) => (float[1,5,128] y, {CACHE}) {{
        [a_q_proj] q = MatMul(x, wq) [a_k_proj] k = MatMul(x, wk) [a_v_proj] v = MatMul(x, wv)
        y, present_key, present_value = {ATTENTION} }}""",
    "attention with biases": f"""g ({ATTENTION_INPUTS}) => (float[1,5,128] y, {CACHE}) {{
        [a_q_proj] p = MatMul(x, wq) q = Add(p, bq) [a_k_proj] r = MatMul(x, wk) k = Add(bk, r)
        [a_v_proj] s = MatMul(x, wv) v = Add(s, bv)
        y, present_key, present_value = {ATTENTION} }}""",
    "feed-forward": """g (float[2,3,256] x) => (float[2,3,96] y) {
        [mlp_gate_proj] a = MatMul(x, wa) [mlp_up_proj] b = MatMul(x, wb)
        s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b) }""",
    "feed-forward, the other way round": """g (float[3,256] x) => (float[3,96] y) {
        [mlp_up_proj] b = MatMul(x, wb) [mlp_gate_proj] a = Gemm<transB=1>(x, wt)
        s = Sigmoid(a) t = Mul(s, a) y = Mul(b, t) }""",
}
JOINED = {
    "attention": ("MatMul{}Tiled", [256, 256], "a_{q,k,v}_proj", ["wq", "wk", "wv"]),
    "attention with biases": ("Linear{}Tiled", [256, 256], "a_{q,k,v}_proj", ["wq", "wk", "wv"]),
    "feed-forward": ("SwiGLU{}Tiled", [256, 192], "mlp_{gate,up}_proj", ["wa", "wb"]),
    "feed-forward, the other way round": ("SwiGLU{}Tiled", [256, 192], "mlp_{gate,up}_proj", ["wt", "wb"]),
}
# What is left alone, and why where it was looked at.
LEFT = {
    "another reader": (
        "a = MatMul(x, wa) b = MatMul(x, wb) s = Sigmoid(a) t = Mul(a, s) u = Mul(t, b) y = Add(u, b)",
        None,
    ),
    "another input": (
        "z = Neg(x) a = MatMul(x, wa) b = MatMul(z, wb) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)",
        None,
    ),
    "another activation": ("a = MatMul(x, wa) b = MatMul(x, wb) s = Tanh(a) t = Mul(a, s) y = Mul(t, b)", None),
    "the sigmoid of the other": (
        "a = MatMul(x, wa) b = MatMul(x, wb) s = Sigmoid(b) t = Mul(a, s) y = Mul(t, b)",
        None,
    ),
    "one weight for both": ("a = MatMul(x, wa) b = MatMul(x, wa) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)", None),
    "a float weight": ("a = MatMul(x, x2) b = MatMul(x, wb) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)", None),
    "biases": (
        "c = MatMul(x, wa) a = Add(c, ba) d = MatMul(x, wb) b = Add(d, bb) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)",
        "they have a bias",
    ),
    "one bias": (
        "c = MatMul(x, wa) a = Add(c, ba) b = MatMul(x, wb) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)",
        "their weights are not stored alike, in tiles",
    ),
    "not in tiles": (
        "v = Concat<axis=1>(x, x) a = MatMul(v, na) b = MatMul(v, nb) s = Sigmoid(a) t = Mul(a, s) y = Mul(t, b)",
        None,
    ),
}
SHAPES = {"wq": (256, 128), "wk": (256, 64), "wv": (256, 64), "bq": (128,), "bk": (64,), "bv": (64,)}
SHAPES |= {
    "wa": (256, 96),
    "wb": (256, 96),
    "wt": (96, 256),
    "ba": (96,),
    "bb": (96,),
    "na": (512, 96),
    "nb": (512, 96),
}
WEIGHT = "rules:\n  - match: {role: [linear, embedding, head]}\n    weight: "
SPECS = {
    "{format: fp6_e2m3}": "FP6E2M3",
    "{format: fp4_e2m1, granularity: group, group_size: 32}": "FP4E2M1",
    "{format: fp6_e3m2, granularity: group, group_size: 32, scale: e8m0}": "FP6E3M2",
    "{format: uint4, granularity: group, group_size: 32, symmetric: false}": "UINT4",
    "{format: int4, granularity: tensor}": "INT4",
}


def build(text: str) -> onnx.ModelProto:
    model, rng = parser.parse_model(HEAD + text), np.random.default_rng(0)
    used = {value for node in model.graph.node for value in node.input}
    arrays = {name: (rng.standard_normal(shape) / 16).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {"last_token": np.array([4], np.int32), "total_tokens": np.array(5, np.int32)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items() if name in used)
    return model


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxq.session(model.SerializeToString(), providers=["cpu"], native=False, accuracy_level=1)
    rng = np.random.default_rng(1)
    feed = {each.name: rng.standard_normal(each.shape).astype(np.float32) for each in session.get_inputs()}
    return session.run(None, feed)


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == "onnxq" and not node.op_type.startswith("Scale")]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spec", SPECS)
def test_products_become_one_and_no_number_changes(name: str, spec: str) -> None:
    model, recipe = build(MODELS[name]), parse_recipe(WEIGHT + spec)
    made, report = quantize_proto(model, recipe, target="ort-cuda")
    apart, _ = quantize_proto(model, recipe)
    operator, shape, label, weights = JOINED[name]
    (node,) = products(made)
    assert node.op_type == operator.format(SPECS[spec]) + ("Asymmetric" if "false" in spec else "")
    assert (node.name, list(node.attribute[[a.name for a in node.attribute].index("shape")].ints)) == (label, shape)
    for one, other in zip(outputs(made), outputs(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    # People find the weights that they know in the report, and the one that there is in the model.
    assert {each.weight for each in report.quantized} == set(weights)
    assert [(each.place, each.done) for each in report.changes] == [
        (report.changes[0].place, f"one product with {len(weights)} weights")
    ]
    (stored,) = find_stored(from_proto(made).ir)
    assert stored.shape == tuple(shape)
    assert stored.name == "{" + ",".join(weights) + "}_quantized"


def test_codes_and_scales_are_those_of_the_weights_alone() -> None:
    kind, recipe = (
        get_format("fp6_e2m3"),
        parse_recipe(WEIGHT + "{format: fp6_e2m3, granularity: group, group_size: 64}"),
    )
    alone = {}
    for weight in ("wa", "wb"):
        made, _ = quantize_proto(
            build(f"g (float[1,256] x) => (float[1,96] y) {{ y = MatMul(x, {weight}) }}"), recipe, target="ort-cuda"
        )
        found = constants(made)
        alone[weight] = unpack_tiled(found[f"{weight}_quantized"], kind), found[f"{weight}_scale"]
    found = constants(quantize_proto(build(MODELS["feed-forward"]), recipe, target="ort-cuda")[0])
    codes, scales = unpack_tiled(found["{wa,wb}_quantized"], kind), found["{wa,wb}_scale"]
    for at, weight in enumerate(("wa", "wb")):
        for joined, single in zip((codes, scales), alone[weight], strict=True):
            np.testing.assert_array_equal(
                joined.reshape(len(joined), 6, 2, 16)[:, :, at].reshape(len(joined), 96), single
            )


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone(name: str) -> None:
    text, reason = LEFT[name]
    inputs = "float[3,256] x" + (", float[256,96] x2" if "x2" in text else "")
    model = build(f"g ({inputs}) => (float[3,96] y) {{ {text} }}")
    recipe = parse_recipe("rules:\n  - match: {name: 'w*'}\n    weight: {format: fp6_e2m3}")
    made, report = quantize_proto(model, recipe, target="ort-cuda")
    assert not any(node.op_type.startswith("SwiGLU") for node in products(made))
    assert [each.reason for each in report.changes] == ([reason] if reason else [])
    apart, _ = quantize_proto(model, recipe)
    np.testing.assert_allclose(outputs(made)[0], outputs(apart)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["ort", "native", "ort-int8", "standard"])
def test_other_targets_keep_products_apart(target: str) -> None:
    made, report = quantize_proto(build(MODELS["feed-forward"]), "fp6", target=target)
    assert report.changes == ()
    assert sum(node.op_type == "Sigmoid" for node in made.graph.node) == 1


def test_weights_of_two_formats_stay_apart() -> None:
    recipe = parse_recipe(
        "rules:\n  - weight: {format: fp6_e2m3}\n  - match: {name: wb}\n    weight: {format: fp6_e3m2}"
    )
    made, report = quantize_proto(build(MODELS["feed-forward"]), recipe, target="ort-cuda")
    assert sorted(node.op_type for node in products(made)) == ["MatMulFP6E2M3Tiled", "MatMulFP6E3M2Tiled"]
    assert report.changes[0].reason == "their weights are not stored alike, in tiles"
    assert {each.name for each in made.graph.initializer} == {
        f"{w}_{part}" for w in ("wa", "wb") for part in ("quantized", "scale")
    }


def test_a_weight_that_stays_float_keeps_its_family_apart() -> None:
    model = build(MODELS["feed-forward"])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((256, 96), np.nan, np.float32), "wb"))
    recipe = parse_recipe("non_finite: skip\nrules:\n  - weight: {format: fp6_e2m3}")
    made, _ = quantize_proto(model, recipe, target="ort-cuda")
    assert [node.op_type for node in products(made)] == ["MatMulFP6E2M3Tiled"]
