"""Binary weights with a few in INT8, in the file: what is stored, what runs, and what it is said to take."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.execution import execution
from onnxq.analysis.stored import find_stored
from onnxq.errors import RecipeError, UsageError
from onnxq.formats import unpack
from onnxq.model.load import from_proto
from onnxq.passes.plan import make_plan
from onnxq.recipes import parse_recipe

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 64] x) => (float[n, 48] y) { y = MatMul(x, w) }'
WEIGHT = np.random.default_rng(0).standard_t(3, (64, 48)).astype(np.float32)
X = (np.random.default_rng(1).standard_normal((200, 64)) * np.linspace(0.1, 3, 64)).astype(np.float32)
SPEC = "format: binary, granularity: group, group_size: 32, scale: fp16, method: pb-llm"
COUNT = 307


def proto() -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    made.graph.node[0].metadata_props.add(key="namespace", value=": M/layers.0.up: Linear/linear: aten.linear")
    made.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return made


def recipe(spec: str = f"{SPEC}, salient: 0.1"):
    return parse_recipe(f"rules:\n- weight: {{{spec}}}")


def quantized(target: str = "ort"):
    return onnxq.quantize_proto(proto(), recipe(), calibration=onnxq.Calibration(X, samples=None), target=target)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_what_runs_is_what_is_stored():
    made, _ = quantized()
    tensors = {each.name.removeprefix("w_"): numpy_helper.to_array(each) for each in made.graph.initializer}
    mask = unpack(tensors["mask"], 1, WEIGHT.size).astype(bool).reshape(WEIGHT.shape)
    assert mask.sum() == tensors["salient"].size == COUNT
    rows = np.arange(64) // 32
    signs = np.zeros(WEIGHT.shape, np.float32)
    signs[~mask] = unpack(tensors["sign"], 1, WEIGHT.size - COUNT) * np.float32(2) - 1
    weight = signs * tensors["scale"].astype(np.float32)[rows] + tensors["mean"].astype(np.float32)[rows]
    integers = np.zeros(WEIGHT.shape, np.float32)
    integers[mask] = tensors["salient"]
    expected = np.where(mask, integers * tensors["salient_scale"].astype(np.float32), weight)
    np.testing.assert_array_equal(run(made, np.eye(64, dtype=np.float32)), expected)


def test_its_bytes_are_planned_written_and_found_again():
    (planned,) = make_plan(from_proto(proto()).ir, recipe(), "ort")[0]
    made, report = quantized()
    expected = -(-(WEIGHT.size - COUNT) // 8) + WEIGHT.size // 8 + COUNT + 2 * (2 * 2 * 48 + 48)
    assert planned.planned_bytes == report.quantized[0].result_bytes == expected
    assert "10 % in int8" in str(report.quantized[0].spec)
    loaded = from_proto(made)
    (stored,) = find_stored(loaded.ir)
    assert (stored.size_bytes, stored.format, stored.granularity) == (expected, "binary", "groups of 32")
    assert stored.label == "layers.0.up"
    assert stored.bits_each == pytest.approx(8 * expected / WEIGHT.size)
    assert execution(loaded).functions == {"PartlyBinary": 1}


@pytest.mark.parametrize("target", ["ort", "ort-int8", "ort-cuda", "native", "standard"])
def test_every_target_holds_the_same(target):
    made, report = quantized(target)
    assert len(report.quantized) == 1
    assert {each.name: each.raw_data for each in made.graph.initializer} == {
        each.name: each.raw_data for each in quantized()[0].graph.initializer
    }


def test_a_run_layer_by_layer_keeps_it(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString())
    given = {"calibration": onnxq.Calibration(X, samples=None), "resume": tmp_path / "kept", "force": True}
    made = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in made:
        onnxq.quantize(tmp_path / "m.onnx", recipe(), output=path, **given)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_it_needs_data():
    with pytest.raises(UsageError, match="pb-llm needs calibration data"):
        onnxq.quantize_proto(proto(), recipe())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC, "format: binary, method: pb-llm, salient: 0.1"),
        ("format: binary", "format: binary, method: pb-llm, salient: 0.1"),
        ("format: int3, salient: 0.1", "format: binary, method: pb-llm, salient: 0.1"),
        ("format: [binary, int2], method: pb-llm, salient: 0.1", "format: binary, method: pb-llm, salient: 0.1"),
        (f"{SPEC}, salient: 0.1, outliers: 0.01", "leave out outliers"),
        (f"{SPEC.replace('fp16', 'e8m0')}, salient: 0.1", "which e8m0 cannot hold"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec, message):
    with pytest.raises(RecipeError, match=message):
        recipe(spec)
