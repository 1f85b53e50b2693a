"""The target `ort-cuda`: which weights the GPU kernels get, and that they mean what those of `ort` mean."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.api import quantize_proto
from onnxq.model.load import from_proto
from onnxq.recipes import parse_recipe

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
# K is 256 and N is 48, or 40, of which a unit of columns is not full.
MODELS = {
    "matmul": "g (float[2,3,256] x) => (float[2,3,48] y) { [n] y = MatMul(x, w) }",
    "transposed": "g (float[3,256] x) => (float[3,48] y) { v = Transpose(w_t) [n] y = MatMul(x, v) }",
    "gemm": "g (float[3,256] x) => (float[3,48] y) { [n] y = Gemm(x, w, b) }",
    "gemm transB": "g (float[3,256] x) => (float[3,48] y) { [n] y = Gemm<transB=1>(x, w_t) }",
    "matmul and bias": "g (float[3,256] x) => (float[3,48] y) { [n] p = MatMul(x, w) y = Add(b, p) }",
    "gemm and rows": "g (float[3,256] x) => (float[3,48] y) { [n] y = Gemm(x, w, r) }",
    "twice": "g (float[3,256] x) => (float[3,48] y) { a = MatMul(x, w) b_ = Neg(a) c = MatMul(x, w) y = Sub(c, b_) }",
}
RAGGED = {
    "matmul": "g (float[2,3,256] x) => (float[2,3,40] y) { [n] y = MatMul(x, w_40) }",
    "transposed": "g (float[3,256] x) => (float[3,40] y) { v = Transpose(w_40_t) [n] y = MatMul(x, v) }",
    "gemm": "g (float[3,256] x) => (float[3,40] y) { [n] y = Gemm(x, w_40, b_40) }",
    "matmul and bias": "g (float[3,256] x) => (float[3,40] y) { [n] p = MatMul(x, w_40) y = Add(p, b_40) }",
    "half a unit of rows": "g (float[2,3,192] x) => (float[2,3,40] y) { [n] y = MatMul(x, w_192) }",
    "twice": "g (float[3,256] x) => (float[3,40] y) { a = MatMul(x, w_40) c = MatMul(x, w_40) y = Mul(a, c) }",
}
OTHERS = {
    "left": "g (float[256,3] x) => (float[48,3] y) { [n] y = MatMul(w_t, x) }",
    "half of a product": "g (float[3,256] x) => (float[3,48] y) { [n] y = Gemm<alpha=0.5>(x, w, b) }",
    "few columns": "g (float[3,256] x) => (float[3,15] y) { [n] y = MatMul(x, narrow) }",
    "ragged K": "g (float[3,248] x) => (float[3,48] y) { [n] y = MatMul(x, short) }",
    "table": "g (int64[3] x) => (float[3,48] y) { [n] y = Gather(w, x) }",
}
SHAPES = {"w": (256, 48), "w_t": (48, 256), "b": (48,), "r": (3, 48), "narrow": (256, 15), "short": (248, 48)}
SHAPES |= {"w_192": (192, 40), "w_40": (256, 40), "w_40_t": (40, 256), "b_40": (40,), "small": (64, 17)}
WEIGHT = "rules:\n  - match: {role: [linear, embedding, head]}\n    weight: "
PRESETS = ["fp6", "fp6-e3m2", "mxfp6", "fp4", "mxfp4", "nvfp4", "int8", "int4", "int3", "int2"]


def build(text: str, dtype: type = np.float32) -> onnx.ModelProto:
    name = {np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}.get(dtype, "float")
    model, rng = parser.parse_model(HEAD + text.replace("float[", f"{name}[")), np.random.default_rng(0)
    used = {value for node in model.graph.node for value in node.input}
    for value, shape in SHAPES.items():
        if value in used:
            array = (rng.standard_normal(shape) / 16).astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(array, value))
    return model


def outputs(model: onnx.ModelProto) -> np.ndarray:
    (given,) = model.graph.input
    dims = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    x = np.random.default_rng(1).integers(-8, 8, dims)
    session = onnxq.session(model.SerializeToString(), providers=["cpu"], native=False, accuracy_level=1)
    return session.run(None, {"x": (np.abs(x) if kind == np.int64 else x).astype(kind)})[0]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == "onnxq"]


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_target_changes_no_number(recipe: str) -> None:
    for name, text in [*MODELS.items(), *RAGGED.items(), *OTHERS.items()]:
        model = build(text)
        made = {target: quantize_proto(model, recipe, target=target)[0] for target in ("ort", "ort-cuda")}
        onnx.checker.check_model(made["ort-cuda"], full_check=True)
        np.testing.assert_allclose(*map(outputs, made.values()), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_product_becomes_one(name: str, dtype: type) -> None:
    made, report = quantize_proto(build(MODELS[name], dtype), "fp6-e3m2", target="ort-cuda")
    family = "Linear" if name in ("gemm", "matmul and bias") else "MatMul"
    assert operators(made) == [f"{family}FP6E3M2Tiled"] * (2 if name == "twice" else 1)
    assert [node.op_type for node in made.graph.node if node.domain == ""] == {
        "gemm and rows": ["Add"],
        "twice": ["Neg", "Sub"],
    }.get(name, [])
    assert name == "twice" or "n" in {node.name for node in made.graph.node}
    (packed,) = [each for each in made.graph.initializer if each.name.endswith("_quantized")]
    assert list(packed.dims) == [3, 2, 1536]
    assert report.quantized[0].result_bytes == 256 * 48 * 6 // 8 + 48 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("recipe", ["fp6-e3m2", "nvfp4", "int4"])
def test_columns_that_fill_up_a_unit_are_cut_off(name: str, dtype: type, recipe: str) -> None:
    made, report = quantize_proto(build(RAGGED[name], dtype), recipe, target="ort-cuda")
    kinds = [node.op_type for node in made.graph.node if not node.op_type.startswith("Scale")]
    product = next(node for node in made.graph.node if "Tiled" in node.op_type)
    assert product.op_type.startswith("MatMul")
    assert next(each for each in product.attribute if each.name == "shape").ints == [
        192 if name == "half a unit of rows" else 256,
        48,
    ]
    behind = {"gemm": ["Add"], "matmul and bias": ["Add"], "twice": [product.op_type, "Slice", "Mul"]}
    assert kinds == [product.op_type, "Slice", *behind.get(name, [])]
    planned = onnxq.plan(from_proto(build(RAGGED[name], dtype)), recipe, target="ort-cuda")
    assert report.quantized[0].result_bytes == planned.quantized[0].result_bytes


@pytest.mark.parametrize(("dtype", "more"), [(np.float16, ""), (np.float32, ", low_rank: 4")])
def test_a_weight_that_units_would_make_larger_keeps_the_dense_form(dtype: type, more: str) -> None:
    """64 x 17 fill a quarter of a unit of 128 x 32: 3,072 bytes of codes, and up to 1,296 of thin matrices beside."""
    model = build("g (float[3,64] x) => (float[3,17] y) { [n] y = MatMul(x, small) }", dtype)
    recipe = parse_recipe(WEIGHT + "{format: fp6_e2m3" + more + "}")
    made, report = quantize_proto(model, recipe, target="ort-cuda")
    assert operators(made) == ["MatMulFP6E2M3"]
    dense = quantize_proto(model, recipe)[1].quantized[0].result_bytes
    planned = onnxq.plan(from_proto(model), recipe, target="ort-cuda").quantized[0].result_bytes
    assert report.quantized[0].result_bytes == dense == planned < 64 * 17 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_keeps_the_dense_form(name: str) -> None:
    made, _ = quantize_proto(build(OTHERS[name]), parse_recipe(WEIGHT + "{format: fp6_e3m2}"), target="ort-cuda")
    assert len(operators(made)) == 1
    assert "Tiled" not in operators(made)[0]


@pytest.mark.parametrize(
    ("spec", "operator"),
    [
        ("{format: uint4, granularity: group, group_size: 32, symmetric: false}", "MatMulUINT4TiledAsymmetric"),
        ("{format: int4, symmetric: false}", "MatMulINT4TiledAsymmetric"),
        ("{format: fp4_e2m1, granularity: group, group_size: 256}", "MatMulFP4E2M1Tiled"),
        ("{format: fp6_e2m3, granularity: tensor}", "MatMulFP6E2M3Tiled"),
        ("{format: fp6_e2m3, granularity: group, group_size: 48}", "MatMulFP6E2M3"),
        ("{format: nf4, granularity: group, group_size: 32}", "MatMulNF4"),
        ("{format: int3}", "MatMulINT3"),
    ],
)
def test_what_the_kernels_take(spec: str, operator: str) -> None:
    model, recipe = build(MODELS["matmul"], np.float16), parse_recipe(WEIGHT + spec)
    made, report = quantize_proto(model, recipe, target="ort-cuda")
    assert operators(made) == [operator]
    planned = onnxq.plan(from_proto(model), recipe, target="ort-cuda")
    assert report.quantized[0].result_bytes == planned.quantized[0].result_bytes
