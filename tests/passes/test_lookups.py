"""Quantized embeddings: lookups read packed rows, and an output head that shares them reads a matrix of its own."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq import quantize_proto
from onnxq.model.load import from_proto
from onnxq.recipes import parse_recipe

RNG = np.random.default_rng(0)
CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
TABLE = "g (int64[N] i) => (float[N,48] e) { [n] e = Gather(t, i) }"
TIED = (
    "g (int64[N] i) => (float[N,20] y) { [n] e = Gather(t, i) [s] v = Transpose<perm=[1,0]>(t) [h] y = MatMul(e, v) }"
)
SEEN = TIED.replace("(float[N,20] y)", "(float[N,20] y, float[N,48] e)")
CAST = SEEN.replace("{ [n] e = Gather(t, i)", "{ w = Cast<to=1>(t) [n] e = Gather(w, i)").replace("(t) [h]", "(w) [h]")
BOTH = "rules:\n  - match: {role: [embedding, head]}\n    weight: "
FORMATS = [
    "{format: fp6_e2m3}",
    "{format: fp6_e3m2, granularity: tensor}",
    "{format: int3, granularity: group, group_size: 32, scale: fp16}",
    "{format: uint4, granularity: group, group_size: 16, symmetric: false}",
    "{format: uint4, granularity: tensor, symmetric: false}",
    "{format: fp4_e2m1, granularity: group, group_size: 16, scale: e4m3}",
    "{format: int8}",
]


def build(graph: str, rows: int = 20, width: int = 48, dtype: type = np.float32) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {graph}')
    table = (np.random.default_rng(1).standard_normal((rows, width)) / 7).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(table, "t"))
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if not node.op_type.startswith("Scale")]


def run(model: onnx.ModelProto, indices: np.ndarray) -> np.ndarray:
    opened = onnxq.session(model.SerializeToString(), providers=["cpu"], accuracy_level=1)
    return opened.run(None, {opened.get_inputs()[0].name: indices})[0]


@pytest.mark.parametrize("spec", FORMATS)
def test_any_rows_are_looked_up(spec):
    model = build(TABLE)
    made, report = quantize_proto(model, parse_recipe(BOTH + spec))
    (name,) = operators(made)
    assert re.fullmatch(r"Gather\w+", name)
    every = run(made, np.arange(20))
    table = numpy_helper.to_array(model.graph.initializer[0])
    assert np.abs(every - table).max() < 0.35 * np.abs(table).max()
    for indices in ([3], [19, 0, 0, 7], [-1, -20]):
        np.testing.assert_array_equal(run(made, np.array(indices)), every[indices])
    assert run(made, np.zeros(0, np.int64)).shape == (0, 48)
    stored = sum(numpy_helper.to_array(each).nbytes for each in made.graph.initializer)
    assert stored == report.quantized[0].result_bytes
    assert onnxq.plan(from_proto(model), parse_recipe(BOTH + spec)).quantized[0].result_bytes == stored


@pytest.mark.parametrize(("shape", "indices"), [("", 4), ("2,3", [[0, 1, 2], [5, 4, 3]])])
def test_indices_have_any_shape(shape, indices):
    out = f"{shape},48".lstrip(",")
    graph = f"g (int32[{shape}] i) => (float[{out}] e) {{ e = Gather(t, i) }}".replace("int32[]", "int32")
    made, _ = quantize_proto(build(graph), parse_recipe(BOTH + FORMATS[0]))
    every, _ = quantize_proto(build(TABLE), parse_recipe(BOTH + FORMATS[0]))
    expected = run(every, np.arange(20))[np.array(indices)]
    np.testing.assert_array_equal(run(made, np.array(indices, np.int32)), expected)


@pytest.mark.parametrize(
    ("target", "spec", "product"),
    [
        ("ort", FORMATS[0], "MatMulFP6E2M3"),
        ("native", FORMATS[3], "MatMulUINT4Asymmetric"),
        ("ort", FORMATS[3], "MatMul"),
        ("ort-int8", FORMATS[0], "MatMulNBits"),
    ],
)
def test_a_head_that_is_the_embedding_runs_in_a_kernel(target, spec, product):
    recipe = parse_recipe(BOTH + spec)
    made, report = quantize_proto(build(TIED, width=64), recipe, target=target)
    kinds = operators(made)
    assert re.fullmatch(r"Gather\w+", kinds[0])
    assert kinds[-1] == product
    assert "Transpose" not in kinds
    assert len(report.quantized) == 1
    rows = numpy_helper.to_array(build(TIED, width=64).graph.initializer[0])
    y = run(made, np.arange(20))
    assert np.linalg.norm(y - rows @ rows.T) < 0.2 * np.linalg.norm(rows @ rows.T)
    assert (
        onnxq.plan(from_proto(build(TIED, width=64)), recipe, target=target).quantized[0].result_bytes
        >= report.quantized[0].result_bytes
    )


@pytest.mark.parametrize("spec", [FORMATS[0], FORMATS[1], FORMATS[3], FORMATS[4], FORMATS[5]])
@pytest.mark.parametrize(("graph", "dtype"), [(SEEN, np.float32), (CAST, np.float16), (TABLE, np.float32)])
def test_for_gpu_kernels_lookups_and_products_read_the_same_tiles(graph, dtype, spec):
    graph = graph.replace("48]", "64]")
    recipe = parse_recipe(BOTH + spec)
    made, report = quantize_proto(build(graph, 100, 64, dtype), recipe, target="ort-cuda")
    tied = "MatMul" in graph
    assert [re.sub(r"FP6|FP4|UINT4|E\dM\d", "", name) for name in operators(made) if "Tiled" in name] == [
        name + ("Asymmetric" if "uint4" in spec else "") for name in ("GatherTiled", "MatMulTiled")[: 1 + tied]
    ]
    stored = sum(numpy_helper.to_array(each).nbytes for each in made.graph.initializer if each.data_type != 7)
    assert stored == report.quantized[0].result_bytes
    planned = onnxq.plan(from_proto(build(graph, 100, 64, dtype)), recipe, target="ort-cuda")
    assert planned.quantized[0].result_bytes == stored
    plain, _ = quantize_proto(build(graph, 100, 64, dtype), recipe)
    indices = {"i": np.array([3, 0, 99, -1, -100])}
    want = onnxq.session(plain.SerializeToString(), providers=["cpu"], accuracy_level=1).run(None, indices)
    got = onnxq.session(made.SerializeToString(), providers=["cpu"]).run(None, indices)
    np.testing.assert_array_equal(got[-1], want[-1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("graph", "dtype"), [(SEEN, np.float32), (CAST, np.float16)], ids=["plain", "cast"])
@pytest.mark.parametrize("spec", FORMATS)
def test_both_copies_hold_the_same_numbers(graph, dtype, spec):
    made, _ = quantize_proto(build(graph, dtype=dtype), parse_recipe(BOTH + spec))
    opened = onnxq.session(made.SerializeToString(), providers=["cpu"], accuracy_level=1)
    y, rows = opened.run(None, {"i": np.arange(20)})
    np.testing.assert_allclose(y, rows @ rows.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "width", "dtype", "spec"),
    [
        (TABLE.replace("48", "44"), 44, np.float32, FORMATS[0]),  # rows are no whole units of eight codes
        (TIED.replace("float[", "float16["), 48, np.float16, FORMATS[6]),  # two copies would be as large as the weight
        (TIED, 48, np.float32, "{format: fp6_e2m3, outliers: 0.01}"),
        (TABLE, 48, np.float32, "{format: codebook3, method: kmeans}"),
    ],
)
def test_other_tables_are_dequantized(graph, width, dtype, spec):
    made, report = quantize_proto(build(graph, width=width, dtype=dtype), parse_recipe(BOTH + spec))
    assert len(report.quantized) == 1
    assert "Gather" in operators(made)


def test_the_sample_with_its_embedding_quantized_evaluates_as_with_a_dequantized_one(tmp_path):
    recipe = parse_recipe("extends: fp6\nrules:\n  - match: {role: embedding}\n    weight: {format: fp6_e2m3}")
    found = {}
    for target in ("ort", "ort-cuda", "standard"):
        path = tmp_path / f"{target}.onnx"
        report = onnxq.quantize(CODE_LM / "model.onnx", recipe, output=path, target=target)
        found[target] = report
    assert len(found["ort"].quantized) == len(found["standard"].quantized)
    settings = {"tokens": CODE_LM / "heldout.npy", "limit": 4, "sequence": 64, "threads": 1}
    score, tiled = (onnxq.evaluate(tmp_path / f"{target}.onnx", **settings) for target in ("ort", "ort-cuda"))
    plain = onnxq.evaluate(CODE_LM / "model.onnx", **settings)
    assert score.value == pytest.approx(plain.value, rel=0.02)
    assert score.execution.looked_up == tiled.execution.looked_up == 1
    assert tiled.value == pytest.approx(score.value, rel=1e-4)
    assert not score.execution.functions
