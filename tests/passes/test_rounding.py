"""Rounded activations: which values, in which form, and that weights are solved behind them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import onnxq
from onnxq.analysis.execution import execution
from onnxq.errors import DataError, UsageError
from onnxq.formats import get_format, get_scale_type
from onnxq.methods.correct import aqer
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.ranges import round_to, scale_of
from onnxq.methods.solve import gptq, rtn
from onnxq.model.load import from_proto
from onnxq.passes.rounding import plan_activations
from onnxq.passes.rounding.norms import fold_norms
from onnxq.passes.selection import Selection
from onnxq.passes.sink import Memory
from onnxq.recipes import Recipe, parse_recipe

DIGITS = Path(__file__).parents[2] / "samples" / "digits"
HEAD = '<ir_version: 9, opset_import: ["": 20]> '
BYTES = "{format: uint8, symmetric: false}"
# q, k and v read one value; a head has as many channels as the table has rows.
ATTENTION = """
g (int64[n,8] ids) => (float[n,8,48] y)
{
    x = Gather(table, ids)
    [q] a = MatMul(x, wq)
    [k] b = MatMul(x, wk)
    [v] c = MatMul(x, wv)
    ab = Mul(a, b)
    abc = Add(ab, c)
    [o] d = MatMul(abc, wo)
    t = Transpose<perm=[1, 0]>(table)
    [head] y = MatMul(d, t)
}
"""
ATTENTION_WEIGHTS = {"table": (48, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16)}


def model_of(text: str, dtype: str = "float32", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model of ONNX text with random weights."""
    model, rng = parser.parse_model(HEAD + text), np.random.default_rng(0)
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) / np.sqrt(max(shape[0], 4))).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def recipe(activation: str = BYTES, weight: str = "{format: int8}", more: str = "") -> Recipe:
    return parse_recipe(f"rules:\n- weight: {weight}\n  activation: {activation}\n{more}")


def only(activation: str) -> Recipe:
    return parse_recipe(f"rules:\n- activation: {activation}")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 48, (6, 8))


def images(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(dtype)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_readers_of_one_value_share_one_pair() -> None:
    original = model_of(ATTENTION, **ATTENTION_WEIGHTS)
    made, report = onnxq.quantize_proto(original, only(BYTES), calibration=onnxq.Calibration({"ids": ids()}))
    assert operators(made) - operators(original) == {"QuantizeLinear": 2, "DequantizeLinear": 2}
    assert [(each.tensor, each.readers, each.format) for each in report.activations] == [
        ("x", ("q", "k", "v"), "uint8"),
        ("abc", ("o",), "uint8"),
        ("d", ("head",), None),
    ]
    read = {node.name: node.input[0] for node in made.graph.node if node.name}
    assert read["q"] == read["k"] == read["v"] == "x_rounded"


def test_every_place_is_decided_once_and_named_ones_are_exempt() -> None:
    more = "- match: {name: k}\n  skip: spike\n- match: {name: o}\n  weight: {format: int8}"
    original = model_of(ATTENTION, **ATTENTION_WEIGHTS)
    made, report = onnxq.quantize_proto(original, recipe(more=more), calibration=onnxq.Calibration({"ids": ids()}))
    fates = {reader: each.reason for each in report.activations for reader in each.readers}
    assert fates == {
        "q": None,
        "v": None,
        "k": "spike",
        "o": "its rule quantizes the weight only",
        "head": "embedding: off unless a rule asks for it with role: embedding",
    }
    assert sum(len(each.readers) for each in report.activations) == 5
    assert {node.name: node.input[0] for node in made.graph.node if node.name in ("q", "k")} == {
        "q": "x_rounded",
        "k": "x",
    }
    assert {each.weight: each.reason for each in report.skipped}["wk"] == "spike"
    planned = onnxq.plan(from_proto(original), recipe(more=more))
    assert planned.activations == report.activations


INNER = (
    "in a subgraph or function: only values of the main graph are rounded (of a merged decoder, take the decoders that "
    "it was made of)"
)


@pytest.mark.parametrize(
    ("text", "shapes", "activation", "reason"),
    [
        ("g (float[n,4] x) => (float[n,4] y) { y = MatMul(c, w) }", {"c": (4, 4), "w": (4, 4)}, BYTES, "constant"),
        (
            "g (float[n,4,8,8] x) => (float[n,4,6,6] y) { y = Conv(x, w) }",
            {"w": (4, 4, 3, 3)},
            "{format: int8, granularity: token}",
            "what Conv sums over does not lie along the last axis: there are no tokens",
        ),
        (
            "g (float[4,8] x) => (float[8,8] y) { y = Gemm<transA=1>(x, w) }",
            {"w": (4, 8)},
            "{format: int4, granularity: token}",
            "what Gemm sums over does not lie along the last axis: there are no tokens",
        ),
        (
            """g (bool p, float[n,4] x) => (float[n,4] y) {
                y = If(p) <then_branch = a () => (float[n,4] t) { t = MatMul(x, w) },
                           else_branch = b () => (float[n,4] u) { u = Identity(x) }> }""",
            {"w": (4, 4)},
            BYTES,
            INNER,
        ),
    ],
)
def test_why_a_value_stays_float(text: str, shapes: dict[str, tuple[int, ...]], activation: str, reason: str) -> None:
    model = model_of(text, **shapes)
    plan = plan_activations(from_proto(model).ir, only(activation), "ort", Selection())
    assert [each.reason for each in plan.decisions] == [reason]
    assert not plan.sites
    # A constant is part of the model, which is no less than what was asked for.
    warnings = () if reason == "constant" else (f"not rounded as the recipe asks: 1 activation, {reason}",)
    assert onnxq.plan(from_proto(model), only(activation)).warnings == warnings
    assert onnxq.quantize_proto(model, only(activation))[1].warnings[: len(warnings)] == warnings


@pytest.mark.parametrize(
    "spec",
    [
        "{format: int8}",
        "{format: uint8, symmetric: false, range: mse}",
        "{format: int4, granularity: channel}",
        "{format: fp8_e4m3}",
        "{format: fp6_e3m2, granularity: channel}",
        "{format: fp4_e2m1, range: percentile, percentile: 99}",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_static_scales_are_those_of_the_data(spec: str, dtype: str) -> None:
    kind = {"float32": "float", "float16": "float16"}[dtype]
    original = model_of(f"g ({kind}[n,5,16] x) => ({kind}[n,5,4] y) {{ y = MatMul(x, w) }}", dtype, w=(16, 4))
    x, chosen = images(30, 5, 16, dtype=dtype), only(spec)
    made, _ = onnxq.quantize_proto(original, chosen, calibration=onnxq.Calibration({"x": x}, batch=7))
    wanted, weight = chosen.rules[0].activation, numpy_helper.to_array(original.graph.initializer[0])
    axes = (0, 1) if wanted.granularity == "channel" else None
    wide, kind = x.astype(np.float64), get_format(wanted.format)
    low, high = wide.min(axes), wide.max(axes)
    if wanted.range == "percentile":
        high = np.percentile(np.abs(wide), wanted.percentile)
        low = -high
    scale, zero = scale_of(low, high, kind, symmetric=wanted.symmetric)
    expected = round_to(wide, scale, zero, kind) @ weight.astype(np.float64)
    difference = np.abs(run(made, x) - expected).max() / np.abs(expected).max()
    # The best range, the edges of bins and scales in float16 differ a little from what is computed here.
    assert difference < (0.05 if wanted.range or dtype == "float16" else 1e-5)


@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_tokens_have_scales_of_their_own_and_need_no_data(symmetric: str) -> None:
    original = model_of("g (float[n,5,16] x) => (float[n,5,4] y) { y = MatMul(x, w) }", w=(16, 4))
    spec = f"{{format: int4, granularity: token, symmetric: {symmetric}}}"
    made, _ = onnxq.quantize_proto(original, only(spec))
    x = images(3, 5, 16)
    x[1] *= 1000
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale, zero = scale_of(low, high, get_format("int4"), symmetric=symmetric == "true")
    expected = round_to(x.astype(np.float64), scale, zero, get_format("int4"))
    weight = numpy_helper.to_array(original.graph.initializer[0])
    np.testing.assert_allclose(run(made, x), expected @ weight, rtol=1e-4, atol=1e-3)


GROUPS = "granularity: group, group_size: 8"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    "spec",
    [
        f"{{format: int4, {GROUPS}}}",
        f"{{format: uint4, {GROUPS}, symmetric: false}}",
        f"{{format: fp4_e2m1, {GROUPS}, clip_ratio: 0.9}}",
    ],
)
def test_groups_of_a_row_have_scales_of_their_own(spec: str, dtype: str) -> None:
    original = model_of(f"g ({dtype}[n,5,16] x) => ({dtype}[n,5,16] y) {{ y = MatMul(x, w) }}", w=(16, 16))
    kind = np.float32 if dtype == "float" else np.float16
    original.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(16, dtype=kind), "w"))
    made, report = onnxq.quantize_proto(original, only(spec))
    x = (images(3, 5, 16) * np.float32([1] * 8 + [100] * 8)).astype(kind)
    asked = only(spec).rules[0].activation
    groups, rounds = x.astype(np.float64).reshape(-1, 8), get_format(asked.format)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale, zero = scale_of(low, high, rounds, symmetric=asked.symmetric)
    expected = round_to(groups, (scale * asked.clip_ratio).astype(np.float32), zero, rounds).reshape(x.shape)
    found = run(made, x)
    # A tie may fall to the other side in float32.
    assert np.isclose(found, expected, rtol=1e-3, atol=1e-5).mean() > 0.99
    assert "groups of 8" in str(report.activations[0].spec)


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "int8"])
def test_groups_of_powers_of_two_are_rounded_as_those_of_weights_are(name: str) -> None:
    original = model_of("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", w=(64, 64))
    original.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    made, report = onnxq.quantize_proto(
        original, only(f"{{format: {name}, granularity: group, group_size: 32, scale: e8m0}}")
    )
    x = images(100, 64) * np.exp2(images(100, 1) * 8)
    grid = GridSpec([get_format(name)], 32, get_scale_type("e8m0"), True, float(np.finfo(np.float32).max))
    expected = rtn.solve(np.ascontiguousarray(x.T)[None], grid).decode()[0].T
    np.testing.assert_array_equal(run(made, x), expected)
    assert "e8m0 scales" in str(report.activations[0].spec)


def test_a_row_without_a_shape_has_groups_too() -> None:
    text = "g (float[n,5,16] x, int64[k] s) => (float[a,b,c] y) { v = Reshape(x, s) y = MatMul(v, w) }"
    made, _ = onnxq.quantize_proto(model_of(text, w=(16, 4)), only(f"{{format: int4, {GROUPS}}}"))
    assert "RowScaleINT4" in operators(made)


def test_channels_that_are_no_whole_groups_stay_float() -> None:
    original = model_of("g (float[n,5,16] x) => (float[n,5,4] y) { y = MatMul(x, w) }", w=(16, 4))
    _, report = onnxq.quantize_proto(original, only("{format: int4, granularity: group, group_size: 6}"))
    assert [each.reason for each in report.activations] == ["its 16 channels are no whole groups of 6"]


SPECS = [
    BYTES,
    "{format: fp6_e2m3, range: mse}",
    "{format: fp6_e3m2, granularity: channel}",
    "{format: fp4_e2m1, granularity: token}",
    "{format: int4, granularity: token}",
    "{format: uint4, granularity: token, symmetric: false}",
    "{format: fp8_e5m2, granularity: token}",
    f"{{format: fp4_e2m1, {GROUPS}, scale: e8m0}}",
    f"{{format: uint4, {GROUPS}, symmetric: false}}",
    "{format: uint8, symmetric: false, range: dynamic}",
    "{format: int6}",
]


@pytest.mark.parametrize("spec", SPECS)
def test_targets_agree_and_the_standard_one_has_onnx_types(spec: str) -> None:
    original = model_of("g (float[n,5,16] x) => (float[n,5,4] y) { y = MatMul(x, w) }", w=(16, 4))
    x = images(30, 5, 16)
    results = {}
    for target in ("ort", "standard"):
        made, _ = onnxq.quantize_proto(original, only(spec), target=target, calibration=onnxq.Calibration({"x": x}))
        onnx.checker.check_model(made, full_check=True)
        results[target] = ReferenceEvaluator(made).run(None, {"x": x})[0]
        if target == "ort":
            np.testing.assert_allclose(run(made, x), results[target], atol=1e-5)
    np.testing.assert_allclose(results["ort"], results["standard"], atol=1e-5)
    assert ("QuantizeDequantize" in "".join(operators(made))) == ("int6" in spec)
    assert (made.opset_import[0].version, made.ir_version) == (28, 14)


def test_channels_of_a_convolution() -> None:
    original = model_of("g (float[n,4,8,8] x) => (float[n,6,6,6] y) { y = Conv(x, w) }", w=(6, 4, 3, 3))
    x = images(10, 4, 8, 8) * np.float32([1, 10, 100, 1000])[:, None, None]
    for spec in ("{format: fp4_e2m1, granularity: channel}", "{format: int8, granularity: channel}"):
        made, _ = onnxq.quantize_proto(original, only(spec), calibration=onnxq.Calibration({"x": x}))
        standard, _ = onnxq.quantize_proto(
            original, only(spec), target="standard", calibration=onnxq.Calibration({"x": x})
        )
        kind = get_format(only(spec).rules[0].activation.format)
        wide = x.astype(np.float64)
        scale, zero = scale_of(wide.min((0, 2, 3)), wide.max((0, 2, 3)), kind, symmetric=True)
        rounded = round_to(wide, scale[:, None, None], zero[:, None, None], kind).astype(np.float32)
        expected = run(original, rounded)
        for found in (run(made, x), ReferenceEvaluator(standard).run(None, {"x": x})[0]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0.05)


def test_weights_make_up_for_rounded_activations() -> None:
    original = model_of("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=(16, 8))
    x = images(200, 16) @ images(16, 16)
    spec = "{format: int4, range: absmax}"
    made, _ = onnxq.quantize_proto(
        original,
        recipe(spec, "{format: int3, method: gptq}"),
        calibration=onnxq.Calibration({"x": x}, samples=None, batch=50),
    )
    kind = get_format("int4")
    scale, zero = scale_of(x.min().astype(np.float64), x.max().astype(np.float64), kind, symmetric=True)
    rounded = round_to(x.astype(np.float64), np.float32(scale), zero, kind)
    grid = GridSpec([get_format("int3")], 16, onnxq.formats.get_scale_type("fp32"), symmetric=True)
    weight = numpy_helper.to_array(original.graph.initializer[0])[None]
    h = rounded.T @ rounded
    aimed = weight + 0.5 * aqer.correction(h, rounded.T @ x) @ weight
    right, blind = (gptq.solve(each, grid, Curvature(h)).decode()[0] for each in (aimed, weight))
    np.testing.assert_allclose(run(made, x), rounded.astype(np.float32) @ right, rtol=1e-3, atol=1e-2)
    errors = [float(np.square(rounded @ each - x @ weight[0]).sum()) for each in (right, blind)]
    assert errors[0] < 0.98 * errors[1]


def test_static_scales_need_data(tmp_path: Path) -> None:
    original = model_of("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=(16, 8))
    with pytest.raises(UsageError, match="static scales of activations, which need data: --calib"):
        onnxq.quantize_proto(original, recipe())
    feeds = iter([{"x": images(4, 16)}])
    with pytest.raises(UsageError, match="once more than an iterator"):
        onnxq.quantize_proto(original, recipe(), calibration=onnxq.Calibration(feeds))
    with pytest.raises(DataError):
        onnxq.quantize_proto(original, recipe(), calibration=onnxq.Calibration({"z": images(4, 16)}))


def test_statistics_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(
        model_of("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=(16, 8)).SerializeToString()
    )
    data = onnxq.Calibration({"x": images(40, 16)})
    chosen = recipe("{format: int8, range: entropy}")
    onnxq.calibrate(path, data, output=tmp_path / "s.safetensors", recipe=chosen)
    by_file = onnxq.quantize(path, chosen, output=tmp_path / "a.onnx", statistics=tmp_path / "s.safetensors")
    onnxq.quantize(path, chosen, output=tmp_path / "b.onnx", calibration=data)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert "calibrated on 40 samples" in by_file.notes


def test_methods_that_look_at_rounded_activations_want_the_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(
        model_of("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=(16, 8)).SerializeToString()
    )
    onnxq.calibrate(path, onnxq.Calibration({"x": images(40, 16)}), output=tmp_path / "all.safetensors")
    with pytest.raises(UsageError, match="look at rounded activations, which a file of statistics does not know"):
        onnxq.quantize(
            path,
            recipe("{format: int8}", "{format: int4, method: gptq}"),
            output=tmp_path / "small.onnx",
            statistics=tmp_path / "all.safetensors",
        )
    assert not (tmp_path / "small.onnx").exists()


NORM = """
g (float[n,4,8,8] x) => (float[n,4,8,8] y)
{
    [c] h = Conv<pads=[1,1,1,1]>(x, w, b)
    [n] y = BatchNormalization<epsilon=0.01>(h, gamma, beta, mean, variance)
}
"""


@pytest.mark.parametrize("bias", [True, False])
def test_folded_norms_change_nothing(bias: bool) -> None:
    text = NORM if bias else NORM.replace("(x, w, b)", "(x, w)")
    original = model_of(text, w=(4, 4, 3, 3), b=(4,), gamma=(4,), beta=(4,), mean=(4,))
    original.graph.initializer.append(numpy_helper.from_array(np.float32([0.1, 1, 4, 9]), "variance"))
    model = from_proto(original)
    assert fold_norms(model.ir, list(model.ir.graph), Memory()) == 1
    folded = onnx.ModelProto.FromString(onnxq.model.form.Form.of(model.ir).tobytes())
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert folded.graph.node[0].input[1] == "w"
    assert folded.graph.node[0].output == ["y"]
    x = images(2, 4, 8, 8)
    np.testing.assert_allclose(run(folded, x), run(original, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sample", ["resnet", "vit"])
def test_digits_run_as_integers_with_the_accuracy_of_floats(sample: str, tmp_path: Path) -> None:
    path, output = DIGITS / f"{sample}.onnx", tmp_path / "small.onnx"
    report = onnxq.quantize(path, "w8a8", output=output, calibration=onnxq.Calibration(DIGITS / "calibration.npz"))
    assert all(each.format == "uint8" for each in report.activations)
    assert report.activations == onnxq.plan(path, "w8a8").activations
    told = execution(output)
    assert (told.integer, told.plain, told.dequantized) == (len(report.quantized), 0, 0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(output, options, providers=["CPUExecutionProvider"])
    made = operators(onnx.ModelProto.FromString((tmp_path / "optimized.onnx").read_bytes()))
    kernels = ("QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "Conv", "Gemm")
    assert {name: made[name] for name in kernels if made[name]} == {
        "resnet": {"QLinearConv": 9, "QLinearAdd": 2, "QGemm": 1},
        "vit": {"QLinearConv": 1, "QGemm": 1, "MatMulIntegerToFloat": 16},
    }[sample]
    before, after = (onnxq.evaluate(each, data=DIGITS / "test.npz").value for each in (path, output))
    assert after >= before - 0.003


@pytest.mark.parametrize("sample", ["resnet", "vit"])
def test_four_bit_weights_behind_8_bit_activations_stay_within_a_point(sample: str, tmp_path: Path) -> None:
    path, output = DIGITS / f"{sample}.onnx", tmp_path / "small.onnx"
    chosen = recipe("{format: uint8, symmetric: false, range: mse}", "{format: int4, method: gptq}")
    onnxq.quantize(path, chosen, output=output, calibration=onnxq.Calibration(DIGITS / "calibration.npz"))
    before, after = (onnxq.evaluate(each, data=DIGITS / "test.npz").value for each in (path, output))
    assert after >= before - 0.01
