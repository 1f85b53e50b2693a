"""A few weights beside the others, in the file: what is stored, what runs, and what it is said to take."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.execution import execution
from onnxq.analysis.stored import find_stored
from onnxq.errors import RecipeError
from onnxq.formats.sparse import unpack_sparse
from onnxq.model.load import from_proto
from onnxq.passes.plan import make_plan
from onnxq.recipes import parse_recipe

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 64] x) => (float[n, 48] y) { y = MatMul(x, w) }'
WEIGHT = np.random.default_rng(0).standard_t(2, (64, 48)).astype(np.float32)
X = (np.random.default_rng(1).standard_normal((200, 64)) * np.linspace(0.1, 3, 64)).astype(np.float32)
SPEC = "format: int3, granularity: group, group_size: 32, symmetric: false, method: {}, outliers: {}"


def proto() -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    made.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return made


def recipe(outliers: float | str, method: str = "rtn"):
    return parse_recipe(f"rules:\n- weight: {{{SPEC.format(method, outliers)}}}")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


@pytest.mark.parametrize("method", ["rtn", "clip", "hqq", "gptq"])
def test_more_of_them_are_less_error_with_every_method(method):
    data = onnxq.Calibration(X, samples=None) if method == "gptq" else None
    errors = []
    for share in ("null", 0.01, 0.05):
        made, report = onnxq.quantize_proto(proto(), recipe(share, method), calibration=data)
        assert len(report.quantized) == 1
        errors.append(float(np.square(run(made, X) - X @ WEIGHT).sum()))
    assert errors[0] > 1.1 * errors[1] > 1.1 * 1.1 * errors[2]


def test_what_runs_is_what_is_stored():
    made, report = onnxq.quantize_proto(proto(), recipe(0.02))
    tensors = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    gaps, values = tensors["w_outlier_gap"], tensors["w_outlier"]
    assert (gaps.dtype, values.dtype, values.size) == (np.uint16, np.float16, round(0.02 * WEIGHT.size))
    # A row of the unit matrix at a time gives the weight itself.
    with_them = run(made, np.eye(64, dtype=np.float32))
    del made.graph.initializer[:]
    made.graph.initializer.extend(
        numpy_helper.from_array(np.zeros_like(array) if name == "w_outlier" else array, name)
        for name, array in tensors.items()
    )
    sparse = unpack_sparse(gaps, values, WEIGHT.size).reshape(WEIGHT.shape)
    np.testing.assert_array_equal(with_them, run(made, np.eye(64, dtype=np.float32)) + sparse)
    error = np.square(with_them.astype(np.float64) - WEIGHT).sum()
    assert report.quantized[0].sqnr_db == pytest.approx(10 * np.log10(np.square(WEIGHT, dtype=float).sum() / error))


def test_their_bytes_are_planned_written_and_found_again():
    planned = [next(iter(make_plan(from_proto(proto()).ir, recipe(each), "ort")[0])) for each in ("null", 0.02)]
    count = round(0.02 * WEIGHT.size)
    assert planned[1].planned_bytes - planned[0].planned_bytes == 4 * count
    made, report = onnxq.quantize_proto(proto(), recipe(0.02))
    assert report.quantized[0].result_bytes == planned[1].planned_bytes
    assert "2 % outliers" in str(report.quantized[0].spec)
    (stored,) = find_stored(from_proto(made).ir)
    assert (stored.size_bytes, stored.outliers, stored.format) == (planned[1].planned_bytes, count, "int3")


def test_a_weight_goes_by_the_module_that_reads_it_behind_them():
    model = proto()
    model.graph.node[0].metadata_props.add(key="namespace", value=": M/layers.0.up: Linear/linear: aten.linear")
    made, _ = onnxq.quantize_proto(model, recipe(0.02))
    (stored,) = find_stored(from_proto(made).ir)
    assert stored.label == "layers.0.up"


@pytest.mark.parametrize("target", ["ort", "ort-int8", "ort-cuda", "native", "standard"])
@pytest.mark.parametrize("name", ["uint4, symmetric: false", "int8", "fp6_e2m3", "nf4"])
def test_every_target_and_format_holds_them(name, target):
    text = f"rules:\n- weight: {{format: {name}, outliers: 0.01}}"
    made, report = onnxq.quantize_proto(proto(), parse_recipe(text), target=target)
    assert len(report.quantized) == 1
    assert [node.op_type for node in made.graph.node].count("AddOutliers") == 1
    if target != "standard":
        assert execution(from_proto(made), native=False).functions == {"AddOutliers": 1}
        assert execution(from_proto(made), native=False).dequantized == 0


def test_a_run_layer_by_layer_keeps_them(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString())
    given = {"calibration": onnxq.Calibration(X, samples=None), "resume": tmp_path / "kept", "force": True}
    made = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in made:
        onnxq.quantize(tmp_path / "m.onnx", recipe(0.02, "gptq"), output=path, **given)
    assert made[0].read_bytes() == made[1].read_bytes()
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1


def test_weights_whose_rows_are_output_channels_are_calibrated_too():
    text = TEXT.replace("float[n, 64] x", "float[64, n] x").replace("float[n, 48] y", "float[48, n] y")
    model = parser.parse_model(text.replace("MatMul(x, w)", "MatMul(w, x)"))
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(WEIGHT.T), "w"))
    data, errors = onnxq.Calibration(np.ascontiguousarray(X.T)[None][0], samples=None), []
    for share in ("null", 0.05):
        made, _ = onnxq.quantize_proto(model, recipe(share, "clip"), calibration=data)
        errors.append(float(np.square(run(made, X.T) - (X @ WEIGHT).T).sum()))
    assert errors[0] > 1.3 * errors[1]


@pytest.mark.parametrize("share", [0, -0.1, 0.2])
def test_a_share_that_cannot_be_meant_is_refused(share):
    with pytest.raises(RecipeError, match="outliers"):
        recipe(share)
