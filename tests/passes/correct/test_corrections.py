"""`correct:` of a recipe: what is changed around rounded weights in every form of a layer, and why not elsewhere."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.errors import DataError, OnnxqError
from onnxq.formats import get_format, get_scale_type
from onnxq.methods.correct import aqer, norm
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import gptq
from onnxq.passes.correct import Corrections
from onnxq.recipes import Recipe, parse_recipe

NET = """
<ir_version: 10, opset_import: ["": 23]>
g (float[n, 32] x) => (float[n, 8] y)
{
    r = RMSNormalization<axis=-1>(x, gamma)
    a = MatMul(r, w0)
    b = MatMul(r, w1)
    c = Relu(a)
    d = Mul(b, c)
    wt = Transpose<perm=[1, 0]>(w2)
    e = MatMul(d, wt)
    f = Add(e, x)
    y = Gemm<transB=1>(f, w3, b3)
}
"""
SHAPES = {"gamma": (32,), "w0": (32, 48), "w1": (32, 48), "w2": (32, 48), "w3": (8, 32), "b3": (8,)}
X = (np.random.default_rng(1).standard_normal((300, 32)) + 0.5).astype(np.float32)


def net(text: str = NET, shapes: dict[str, tuple[int, ...]] = SHAPES, dtype: type = np.float32) -> onnx.ModelProto:
    rng, made = np.random.default_rng(0), parser.parse_model(text)
    for name, shape in shapes.items():
        array = rng.uniform(0.5, 2, shape) if name == "gamma" else rng.standard_normal(shape) / 6
        made.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
    return made


def recipe(correct: str, method: str = "gptq", name: str = "int3", more: str = "") -> Recipe:
    weight = f"format: {name}, symmetric: false, method: {method}"
    return parse_recipe(f"correct: {correct}\nrules:\n- {{weight: {{{weight}}}{more}}}")


def outputs(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def converted(
    model: onnx.ModelProto, asked: Recipe, x: np.ndarray = X, **given
) -> tuple[onnx.ModelProto, onnxq.Report]:
    data = onnxq.Calibration(x, samples=None, batch=100, cache=given.pop("cache", None))
    return onnxq.quantize_proto(model, asked, calibration=data, **given)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def drift(model: onnx.ModelProto, made: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    """By how much the mean of each output channel is another one."""
    difference = (outputs(made, x) - outputs(model, x)).astype(np.float64)
    return np.abs(np.moveaxis(difference, 1, -1).reshape(-1, difference.shape[1]).mean(0))


PATCHES = np.random.default_rng(2).standard_normal((40, 4, 6, 5)).astype(np.float32) + 0.5
HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 32] x) => (float[n, 8] y) '
CONV_HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 4, 6, 5] x) => (float[n, 8, h, w] y) '
FORMS = {
    "MatMul": (HEAD + "{ y = MatMul(x, w) }", {"w": (32, 8)}),
    "MatMul, Add": (HEAD + "{ a = MatMul(x, w) y = Add(a, b) }", {"w": (32, 8), "b": (8,)}),
    "Add, MatMul": (HEAD + "{ a = MatMul(x, w) y = Add(b, a) }", {"w": (32, 8), "b": (8,)}),
    "Gemm": (HEAD + "{ y = Gemm<transB=1>(x, w) }", {"w": (8, 32)}),
    "Gemm with bias": (HEAD + "{ y = Gemm(x, w, b) }", {"w": (32, 8), "b": (8,)}),
    "Conv": (CONV_HEAD + "{ y = Conv<pads=[1, 1, 1, 1]>(x, w) }", {"w": (8, 4, 3, 3)}),
    "Conv with bias": (CONV_HEAD + "{ y = Conv<strides=[2, 1]>(x, w, b) }", {"w": (8, 4, 3, 3), "b": (8,)}),
}
WORDS = {"MatMul": "in a new Add", "MatMul, Add": "in the bias of Add", "Add, MatMul": "in the bias of Add"}


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("form", FORMS)
def test_a_bias_gives_the_mean_back(form, method, sequential, tmp_path):
    model, x = net(*FORMS[form]), X if FORMS[form][0].startswith(HEAD) else PATCHES
    given = {} if sequential else {"cache": tmp_path / "statistics"}
    without, _ = converted(model, recipe("[]", method), x, **given)
    made, report = converted(model, recipe("bias", method), x, **given)
    assert drift(model, without, x).max() > 5e-3
    assert drift(model, made, x).max() < 1e-5
    (change,) = report.changes
    assert change.done == WORDS.get(form, f"in the bias of {form.split()[0]}")


def test_a_bias_is_part_of_the_product():
    model = net(*FORMS["MatMul"])
    for name, expected in (("int3", ["LinearINT3Asymmetric"]), ("uint4", ["DequantizeLinear", "MatMul", "Add"])):
        made, _ = converted(model, recipe("bias", name=name))
        assert [node.op_type for node in made.graph.node] == expected


def test_a_half_precision_model_keeps_its_types():
    model = net(FORMS["MatMul"][0].replace("float[", "float16["), FORMS["MatMul"][1], np.float16)
    x = X.astype(np.float16)
    made, _ = converted(model, recipe("bias", "rtn"), x)
    assert (
        drift(model, made, x).max() < 1e-3 < 5e-3 < drift(model, converted(model, recipe("[]", "rtn"), x)[0], x).max()
    )


@pytest.mark.parametrize("granularity", ["tensor, range: mse", "token"])
@pytest.mark.parametrize("sequential", [True, False])
def test_a_bias_gives_back_what_rounding_of_activations_takes(sequential, granularity, tmp_path):
    more = f", activation: {{format: int3, granularity: {granularity}}}"
    model, given = net(*FORMS["MatMul"]), {} if sequential else {"cache": tmp_path / "statistics"}
    assert drift(model, converted(model, recipe("[]", "rtn", "int5", more), **given)[0]).max() > 0.01
    assert drift(model, converted(model, recipe("bias", "rtn", "int5", more), **given)[0]).max() < 1e-5


def test_a_product_of_integers_keeps_running_as_one():
    more = ", activation: {format: uint8, symmetric: false, range: percentile, percentile: 98}"
    model = net(*FORMS["MatMul"])
    text = f"rules:\n- {{weight: {{format: int8}}{more}}}"
    without, _ = converted(model, parse_recipe(text))
    made, report = converted(model, parse_recipe(f"correct: bias\n{text}"))
    assert "1 product of quantized activations and quantized weights" in report.notes
    # The bias is int32, in steps of the scales of both.
    assert drift(model, made).max() < 1e-4 < 5e-3 < drift(model, without).max()


REFUSED = {
    "it is shared by 2 operators": "{ a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) y = Add(b, c) }",
    "FusedMatMul takes no bias": "{ y = com.microsoft.FusedMatMul<alpha=2.0>(x, w) }",
    "a Gemm that scales": "{ y = Gemm<alpha=2.0>(x, w) }",
    "its bias is not a constant vector": "{ a = ReduceMax<keepdims=1>(x) y = Gemm(x, w, a) }",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_where_no_bias_can_go_the_report_says_why(reason):
    head = HEAD.replace('["": 21]', '["": 21, "com.microsoft": 1]')
    model = net(head + REFUSED[reason], {"w": (32, 8)})
    made, report = converted(model, recipe("bias"))
    assert [each.done for each in report.changes] == [None]
    assert str(report.changes[0].reason).startswith(reason)
    assert np.array_equal(outputs(made), outputs(converted(model, recipe("[]"))[0]))


def test_where_nothing_is_rounded_nothing_is_corrected():
    model = net()
    rng = np.random.default_rng(5)
    for each in model.graph.initializer:
        if each.name.startswith("w"):
            codes = rng.integers(-126, 127, each.dims)
            # All channels reach the largest code, so that their scales are one.
            codes[:, 0], codes[0] = 127, 127
            each.CopyFrom(numpy_helper.from_array(codes.astype(np.float32), each.name))
    plain, _ = converted(model, parse_recipe("rules:\n- weight: {format: int8, method: gptq}"))
    for correct in ("bias", "[norm, bias]"):
        asked = parse_recipe(f"correct: {correct}\nrules:\n- weight: {{format: int8, method: gptq}}")
        made, report = converted(model, asked)
        assert not any(each.done for each in report.changes)
        assert np.array_equal(outputs(made), outputs(plain))
        assert sum(node.op_type == "Add" for node in made.graph.node) == 1
        assert len(made.graph.initializer) == len(plain.graph.initializer)


def solved_at_once(model: onnx.ModelProto) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """X'X of what the norm gives, and the weights behind it, exact and solved by hand."""
    stored = constants(model)
    rows = X.astype(np.float64)
    rows = (rows / np.sqrt((rows**2).mean(1, keepdims=True) + 1e-5)) * stored["gamma"]
    h, exact = rows.T @ rows, [stored["w0"], stored["w1"]]
    spec = GridSpec([get_format("int3")], 32, get_scale_type("fp32"), symmetric=False)
    return h, exact, [gptq.solve(each[None], spec, Curvature(h)).decode()[0] for each in exact]


def test_a_norm_takes_the_factors_for_all_layers_that_read_it(tmp_path):
    model = net()
    made, report = converted(model, recipe("norm"), cache=tmp_path / "statistics")
    h, exact, rounded = solved_at_once(model)
    gamma = next(array for name, array in constants(made).items() if name.startswith("gamma"))
    sizes = [np.sqrt(np.einsum("kc,kl,lc->", each, h, each)) for each in exact]
    shares = [[each / size for each, size in zip(some, sizes, strict=True)] for some in (exact, rounded)]
    expected = norm.factors(h, *shares)
    assert np.abs(expected - 1).max() > 1e-3
    np.testing.assert_allclose(gamma / constants(model)["gamma"], expected, rtol=1e-3)
    done = {each.place: each.done for each in report.changes}
    assert str(done["r"]).endswith("smaller")
    assert done["d"] is done["f"] is None


def test_layers_behind_a_norm_see_its_factors(monkeypatch):
    """In a run layer by layer, the correction is what the output shows: no mean is left, whatever came before."""
    model = net()
    # Else weights and biases go half of the way to the float model.
    monkeypatch.setattr(aqer, "SHARE", np.float32(1))
    made, report = converted(model, recipe("[norm, bias]", name="int5"))
    assert sum(each.done is not None for each in report.changes) == 5
    assert drift(model, made).max() < 1e-5


def test_norms_are_left_alone_where_a_reader_is_not_solved_by_gptq():
    text = (
        "correct: norm\nrules:\n- weight: {format: int4, method: gptq}\n- match: {name: w1}\n  weight: {format: int4}"
    )
    _, report = converted(net(), parse_recipe(text))
    assert {each.place: each.reason for each in report.changes}["r"] == "a layer that reads it is not solved by gptq"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    path, asked = tmp_path / "m.onnx", recipe("[norm, bias]")
    onnx.save(net(), path)
    given = {"calibration": onnxq.Calibration(X, samples=None), "force": True}
    whole = onnxq.quantize(path, asked, output=tmp_path / "whole.onnx", **given)
    real, found = Corrections.find, []

    def failing(self, numbers, seen):
        found.append(numbers)
        if len(found) == 2:
            raise KeyboardInterrupt
        return real(self, numbers, seen)

    monkeypatch.setattr(Corrections, "find", failing)
    given["resume"] = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        onnxq.quantize(path, asked, output=tmp_path / "resumed.onnx", **given)
    resumed = onnxq.quantize(path, asked, output=tmp_path / "resumed.onnx", **given)
    assert len(found) == 4
    assert resumed.changes == whole.changes
    assert (tmp_path / "resumed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    monkeypatch.setattr(Corrections, "find", None)
    again = onnxq.quantize(path, asked, output=tmp_path / "again.onnx", **given)
    assert again.changes == whole.changes
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    with pytest.raises(DataError, match="another model, plan"):
        onnxq.quantize(path, recipe("norm"), output=tmp_path / "again.onnx", **given)
    (damaged,) = (tmp_path / "kept").glob("corrected-0.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged; delete it to correct again"):
        onnxq.quantize(path, asked, output=tmp_path / "again.onnx", **given)


def test_a_file_of_statistics_will_do(tmp_path):
    path, asked = tmp_path / "m.onnx", recipe("[norm, bias]")
    onnx.save(net(), path)
    data = onnxq.Calibration(X, samples=None)
    onnxq.calibrate(path, data, output=tmp_path / "some.safetensors", recipe=asked)
    onnxq.calibrate(path, data, output=tmp_path / "all.safetensors")
    made = []
    for name in ("some", "all"):
        output = tmp_path / f"{name}.onnx"
        report = onnxq.quantize(path, asked, output=output, statistics=tmp_path / f"{name}.safetensors")
        assert sum(each.done is not None for each in report.changes) == 5
        made.append(onnx.load(output))
    assert np.array_equal(*map(outputs, made))


def test_corrections_need_data():
    with pytest.raises(OnnxqError, match="correct: bias needs calibration data"):
        onnxq.quantize_proto(net(), recipe("bias", "rtn"))


def test_what_the_new_add_lets_onnxruntime_fuse_has_the_opset_it_needs() -> None:
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2, 32] x) => (float[n, 2, 8] y) '
    model = net(head + "{ a = MatMul(x, w) b = Relu(a) y = Neg(b) }", {"w": (32, 8)})
    grouped = "correct: bias\nrules:\n- weight: {format: uint4, symmetric: false, granularity: group, group_size: 16}"
    made, report = converted(model, parse_recipe(grouped), X[:, None].repeat(2, axis=1))
    assert [each.done for each in report.changes] == ["in a new Add"]
    assert "DequantizeLinear" in {each.op_type for each in made.graph.node}
    onnx.checker.check_model(made, full_check=True)
