"""Tables that stand beside the codes of each weight: what is stored, what runs, and what it is said to take."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.execution import execution
from onnxq.analysis.stored import find_stored, is_part
from onnxq.errors import RecipeError
from onnxq.formats import LEARNED_FORMATS, unpack
from onnxq.model.load import from_proto
from onnxq.model.sites import find_weights
from onnxq.passes.plan import make_plan
from onnxq.recipes import parse_recipe

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 64] x) => (float[n, 48] y) { y = MatMul(x, w) }'
WEIGHT = np.random.default_rng(0).standard_t(4, (64, 48)).astype(np.float32)
X = (np.random.default_rng(1).standard_normal((200, 64)) * np.linspace(0.1, 3, 64)).astype(np.float32)


def proto(text: str = TEXT) -> onnx.ModelProto:
    made = parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return made


def recipe(name: str, method: str):
    spec = f"format: {name}, granularity: group, group_size: 32, scale: fp16, method: {method}"
    return parse_recipe(f"rules:\n- weight: {{{spec}}}")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("name", LEARNED_FORMATS)
def test_what_runs_is_what_is_stored(name):
    made, _ = onnxq.quantize_proto(proto(), recipe(name, "kmeans"))
    (node,) = made.graph.node
    assert node.op_type == f"MatMul{name.upper()}"
    packed, scale, table = (numpy_helper.to_array(each) for each in made.graph.initializer)
    codes = unpack(packed, LEARNED_FORMATS[name].bits, WEIGHT.size).reshape(WEIGHT.shape)
    weight = table[codes] * scale.astype(np.float32)[np.arange(64) // 32]
    np.testing.assert_array_equal(run(made, np.eye(64, dtype=np.float32)), weight)


@pytest.mark.parametrize("name", LEARNED_FORMATS)
def test_its_bytes_are_planned_written_and_found_again(name):
    (planned,) = make_plan(from_proto(proto()).ir, recipe(name, "kmeans"), "ort")[0]
    made, report = onnxq.quantize_proto(proto(), recipe(name, "kmeans"))
    bits = LEARNED_FORMATS[name].bits
    assert planned.planned_bytes == WEIGHT.size * bits // 8 + 2 * 2 * 48 + 4 * 2**bits
    assert report.quantized[0].result_bytes == planned.planned_bytes
    loaded = from_proto(made)
    (stored,) = find_stored(loaded.ir)
    assert (stored.size_bytes, stored.format, stored.bits) == (planned.planned_bytes, name, bits)
    assert (stored.granularity, stored.symmetric) == ("groups of 32", True)
    assert [each.name for each in find_weights(loaded.ir) if not is_part(each.source)] == []
    assert execution(loaded).functions == {f"MatMul{name.upper()}": 1}


@pytest.mark.parametrize("name", LEARNED_FORMATS)
def test_learning_helps_and_gptq_helps_more(name):
    errors = []
    for method in ("rtn", "kmeans", "gptq"):
        data = None if method == "rtn" else onnxq.Calibration(X, samples=None)
        made, _ = onnxq.quantize_proto(proto(), recipe(name, method), calibration=data)
        errors.append(float(np.square(run(made, X) - X @ WEIGHT).sum()))
    assert errors[0] > 1.1 * errors[1] > 1.1 * 1.1 * errors[2]


@pytest.mark.parametrize(
    ("text", "op"),
    [("Gemm(x, w)", "MatMulCODEBOOK3"), ("MatMul(x, w) y = Add(h, b)", "LinearCODEBOOK3")],
)
def test_products_with_and_without_a_bias_are_one_node(text, op):
    model = proto(TEXT.replace("y = MatMul(x, w)", ("h = " if "h" in text else "y = ") + text))
    bias = np.arange(48, dtype=np.float32) if "b)" in text else None
    if bias is not None:
        model.graph.initializer.append(numpy_helper.from_array(bias, "b"))
    made, _ = onnxq.quantize_proto(model, recipe("codebook3", "kmeans"))
    assert [node.op_type for node in made.graph.node] == [op]
    plain, _ = onnxq.quantize_proto(proto(), recipe("codebook3", "kmeans"))
    np.testing.assert_allclose(run(made, X), run(plain, X) + (0 if bias is None else bias), rtol=1e-5, atol=1e-4)


def test_a_run_layer_by_layer_keeps_tables(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString())
    given = {"calibration": onnxq.Calibration(X, samples=None), "resume": tmp_path / "kept", "force": True}
    made = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in made:
        onnxq.quantize(tmp_path / "m.onnx", recipe("codebook3", "gptq"), output=path, **given)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_kmeans_learns_tables_only():
    with pytest.raises(RecipeError, match="method kmeans learns tables: format codebook4, codebook3, codebook2"):
        recipe("int3", "kmeans")
