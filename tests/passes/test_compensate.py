"""Low-rank compensation: two thin products beside a quantized one, in every form of it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.model.load import from_proto
from onnxq.passes.plan import make_plan
from onnxq.recipes import parse_recipe

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 64] x) => (float[n, 48] y, float[n, 48] z) { y = MatMul(x, w) z = Relu(y) }
"""
SPEC = "granularity: group, group_size: 32, symmetric: false, method: {method}, low_rank: {rank}"
WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
X = (np.random.default_rng(1).standard_normal((200, 64)) * np.linspace(0.1, 3, 64)).astype(np.float32)


def proto(text: str = TEXT) -> onnx.ModelProto:
    made = parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return made


def recipe(name: str, method: str, rank: int | str):
    return parse_recipe(f"rules:\n- weight: {{format: {name}, {SPEC.format(method=method, rank=rank)}}}")


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})


@pytest.mark.parametrize("name", ["uint4", "int3"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_more_rank_is_less_error(name, method):
    exact, errors = X @ WEIGHT, []
    for rank in ("null", 2, 8):
        data = onnxq.Calibration(X, samples=None) if method == "gptq" else None
        made, report = onnxq.quantize_proto(proto(), recipe(name, method, rank), calibration=data)
        assert len(report.quantized) == 1
        y, z = outputs(made)
        assert np.array_equal(z, np.maximum(y, 0))
        errors.append(float(np.square(y - exact).sum()))
    assert errors[0] > 1.05 * errors[1] > 1.05 * 1.05 * errors[2]


def test_a_full_rank_gives_the_float_model_back():
    made, report = onnxq.quantize_proto(proto(), recipe("uint2", "rtn", 16))
    entry = report.quantized[0]
    assert entry.result_bytes == report.entries[0].result_bytes
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("Add") == 1
    shapes = {tuple(each.dims) for each in made.graph.initializer}
    assert {(64, 16), (16, 48)} <= shapes


def test_the_plan_counts_the_matrices():
    sizes = []
    for rank in ("null", 4):
        plan, _ = make_plan(from_proto(proto()).ir, recipe("uint4", "rtn", rank), "ort")
        sizes.append(next(iter(plan)).planned_bytes)
    assert sizes[1] - sizes[0] == 4 * (64 + 48) * 4


def test_only_products_with_the_weight_on_the_right_are_compensated():
    text = TEXT.replace("y = MatMul(x, w)", "y = Gemm(x, w)")
    plan, _ = make_plan(from_proto(proto(text)).ir, recipe("uint4", "rtn", 4), "ort")
    assert "low_rank needs products x @ weight" in str(next(iter(plan)).reason)


def test_readers_in_several_types_are_not_compensated():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float16[n, 64] a, float[n, 64] x) => (float16[n, 48] y, float[n, 48] z) {
        y = MatMul(a, w) c = Cast<to=1>(w) z = MatMul(x, c)
    }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT.astype(np.float16), "w"))
    plan, _ = make_plan(from_proto(model).ir, recipe("uint4", "rtn", 4), "ort")
    assert "low_rank needs products x @ weight" in str(next(iter(plan)).reason)


def test_a_run_layer_by_layer_keeps_them(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString())
    given = {"calibration": onnxq.Calibration(X, samples=None), "resume": tmp_path / "kept", "force": True}
    made = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in made:
        onnxq.quantize(tmp_path / "m.onnx", recipe("uint4", "gptq", 4), output=path, **given)
    assert made[0].read_bytes() == made[1].read_bytes()
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
