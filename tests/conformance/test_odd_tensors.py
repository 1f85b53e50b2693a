"""Odd weights: each is quantized to what the oracle says or left alone for a reason; nothing non-finite comes out."""

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.api import quantize_proto
from onnxq.errors import NonFiniteError
from onnxq.recipes import load_recipe, parse_recipe
from onnxq.statistics.calibration import Calibration

PRESETS = ["fp4", "fp6", "fp6-e2m3", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "nvfp4"]
TARGETS = ("ort", "standard", "ort-int8", "native")
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


# name: (weight [K, N], whether it is quantized; None where that depends on the preset)
ODD: dict[str, tuple[np.ndarray, bool | None]] = {
    "one by one": (normal(1, 1), None),
    "one row": (normal(1, 64), None),
    "one column": (normal(64, 1), None),
    "odd columns": (normal(64, 33), True),
    "K below the group": (normal(7, 64), None),
    "group does not divide K": (normal(37, 64), True),
    "prime": (normal(61, 59), True),
    "zeros": (np.zeros((64, 32)), True),
    "negative zeros": (-np.zeros((64, 32)), True),
    "ones": (np.ones((64, 32)), True),
    "constant": (np.full((64, 32), -0.3), True),
    "positive": (np.abs(normal(64, 32)), True),
    "negative": (-np.abs(normal(64, 32)), True),
    "one outlier": (np.where(np.arange(2048).reshape(64, 32) == 77, 1e4, normal(64, 32)), True),
    "a column of zeros": (normal(64, 32) * (np.arange(32) > 0), True),
    "a group of zeros": (normal(64, 32) * (np.arange(64) > 31)[:, None], True),
    "denormal": (np.full((64, 32), 3e-42), True),
    "tiny": (normal(64, 32) * 1e-30, True),
    "small": (normal(64, 32) * 1e-7, True),
    "large": (normal(64, 32) * 1e7, True),
    "huge": (normal(64, 32) * 1e36, True),
    "of all sizes": (normal(64, 32) * 10.0 ** RNG.integers(-30, 30, (64, 32)), True),
    "no rows": (normal(0, 32), False),
    "no columns": (normal(64, 0), False),
}


def product(weight: np.ndarray, *, opset: int = 21) -> onnx.ModelProto:
    kind = {"float32": "float", "float16": "float16"}[weight.dtype.name]
    k, n = weight.shape
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> '
        f"g ({kind}[3,{k}] x) => ({kind}[3,{n}] y) {{ [n] y = MatMul(x, w) }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def scales_of(model: onnx.ModelProto) -> list[np.ndarray]:
    """All float scales, and those of one byte as what they mean."""
    import ml_dtypes

    found = []
    one_byte = {"ScaleE8M0": ml_dtypes.float8_e8m0fnu, "ScaleE4M3": ml_dtypes.float8_e4m3fn}
    kinds = {node.input[0]: one_byte[node.op_type] for node in model.graph.node if node.op_type in one_byte}
    for tensor in model.graph.initializer:
        if "_scale" in tensor.name or "tensor_scale" in tensor.name:
            array = numpy_helper.to_array(tensor)
            found.append(array.view(kinds[tensor.name]) if tensor.name in kinds else array)
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float", "half"])
def test_odd_weights(preset: str, target: str, dtype: type, oracle, run) -> None:
    for name, (values, quantized) in ODD.items():
        weight = np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
        model = product(weight)
        emitted, report = quantize_proto(model, preset, target=target, threads=1)
        (entry,) = report.entries
        below_scales = weight.any() and np.abs(weight).max() < np.finfo(dtype).smallest_normal
        assert quantized is None or below_scales or (entry.format is not None) == quantized, (name, entry)
        if entry.format is None:
            assert entry.reason
            assert emitted.SerializeToString() == model.SerializeToString()
            continue
        assert entry.result_bytes < entry.size_bytes
        onnx.checker.check_model(emitted, full_check=True)
        scales = scales_of(emitted)
        assert scales
        for scale in scales:
            smallest = max(float(np.finfo(scale.dtype).smallest_normal), 0) if scale.dtype.kind == "f" else 2.0**-126
            assert np.isfinite(scale.astype(np.float64)).all()
            assert (scale.astype(np.float64) >= smallest).all(), (name, scale.min())
        decoded = oracle(model, emitted)
        restored = decoded.weights["n", 1].astype(np.float64)
        assert np.isfinite(restored).all()
        if not weight.any():
            assert not restored.any()
        largest = np.abs(weight.astype(np.float64)).max()
        # A code is off by at most half the widest step, which in two bits is half of all there is.
        assert np.abs(restored - weight).max() <= 0.51 * largest, name
        if target != "standard" and largest < 1e30:
            x = RNG.standard_normal((3, weight.shape[0])).astype(dtype)
            got, expected = (run(each, {"x": x})[0].astype(np.float64) for each in (emitted, decoded.model))
            if np.isfinite(expected).all():
                tolerance = 1e-5 if dtype == np.float32 else 4e-3
                assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max() + 1e-30, name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("weight", [np.full((64, 32), 3e-42, np.float32), np.full((64, 32), 6e-8, np.float16)])
def test_weights_below_every_scale_are_left_alone(weight: np.ndarray, preset: str) -> None:
    model = product(weight)
    emitted, report = quantize_proto(model, preset)
    (entry,) = report.entries
    if entry.format is None:
        assert "too small for its scales" in str(entry.reason)
        assert emitted == model
    else:
        assert entry.sqnr_db > 6


@pytest.mark.parametrize("preset", ["int4-gptq", "int2-best", "int4-awq", "w4a4-rotate"])
@pytest.mark.parametrize("size", [1e38, 1e-36])
def test_weights_without_squares_are_left_alone_by_methods_that_square(size: float, preset: str) -> None:
    weight = (np.sign(normal(64, 32)) * size).astype(np.float32)
    data = Calibration(normal(4, 3, 64).astype(np.float32) / 1e3)
    _, report = quantize_proto(product(weight), load_recipe(preset), calibration=data)
    assert "no squares in float32" in str(report.entries[0].reason)


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (8, 8, 0)])
def test_empty_convolution_is_left_alone(shape: tuple[int, ...]) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,C,L] x) => (float[1,O,M] y) { y = Conv(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), "w"))
    for preset in PRESETS:
        _, report = quantize_proto(model, preset)
        assert report.entries[0].reason == "empty"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
class TestNonFinite:
    def model(self, bad: float) -> onnx.ModelProto:
        model = parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]> g (float[3,64] x) => (float[3,64] y) '
            "{ [a] h = MatMul(x, good) [b] y = MatMul(h, evil) }"
        )
        weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, "good"))
        weight[17, 4] = weight[40, 0] = bad
        model.graph.initializer.append(numpy_helper.from_array(weight, "evil"))
        return model

    def test_error_names_weight_and_place(self, bad: float, preset: str) -> None:
        with pytest.raises(NonFiniteError) as caught:
            quantize_proto(self.model(bad), preset)
        message = str(caught.value)
        assert "weight 'evil' has 2 NaN or Inf values (first at [17, 4])" in message
        assert "--non-finite skip" in message
        assert "--exclude 'evil'" in message

    def test_skip_leaves_that_weight_alone(self, bad: float, preset: str, oracle) -> None:
        recipe = load_recipe(preset).model_copy(update={"non_finite": "skip"})
        model = self.model(bad)
        emitted, report = quantize_proto(model, recipe)
        good, evil = report.entries
        assert good.format
        assert evil.format is None
        assert "first at [17, 4]" in (evil.reason or "")
        kept = next(each for each in emitted.graph.initializer if each.name == "evil")
        assert kept == next(each for each in model.graph.initializer if each.name == "evil")
        assert set(oracle(model, emitted).weights) == {("a", 1)}

    def test_clamp_replaces(self, bad: float, preset: str, oracle) -> None:
        recipe = load_recipe(preset).model_copy(update={"non_finite": "clamp"})
        model = self.model(bad)
        emitted, report = quantize_proto(model, recipe)
        assert len(report.quantized) == 2
        weight = oracle(model, emitted).weights["b", 1]
        assert np.isfinite(weight).all()
        assert np.sign(weight[17, 4]) in (0, np.sign(np.nan_to_num(bad)))
        (said,) = [each for each in report.warnings if "clamped" in each]
        assert said == "weight 'evil' has 2 NaN or Inf values (first at [17, 4]): clamped"

    def test_exclude_is_a_way_out(self, bad: float, preset: str) -> None:
        _, report = quantize_proto(self.model(bad), preset, exclude=("evil",))
        assert [each.reason for each in report.skipped] == ["excluded"]


def test_all_weights_skipped_gives_the_model_back() -> None:
    model = product(np.full((64, 32), np.nan, np.float32))
    recipe = parse_recipe("extends: int4\nnon_finite: skip")
    emitted, report = quantize_proto(model, recipe)
    assert emitted.SerializeToString() == model.SerializeToString()
    assert report.quantized == ()


def test_the_name_of_a_weight_that_is_not_finite_is_told_as_a_glob() -> None:
    model = product(np.full((64, 32), np.nan, np.float32))
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "layers[0].w"
    with pytest.raises(NonFiniteError) as caught:
        quantize_proto(model, "fp6")
    (glob,) = re.findall("--exclude '(.*?)'", str(caught.value))
    _, report = quantize_proto(model, "fp6", exclude=glob)
    assert report.reasons == {"excluded": 1}
