"""Functions that round activations give what a format itself gives, in onnxruntime and in the reference."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxq.formats import NAMED_FORMATS, Integer, Minifloat, get_format
from onnxq.functions import DOMAIN, VERSION, functions, operator_suffix
from onnxq.recipes import is_roundable

FORMATS = [name for name in (*NAMED_FORMATS, "fp5_e1m3", "fp7_e2m4") if is_roundable(get_format(name))]
INTEGERS = [name for name in FORMATS if isinstance(get_format(name), Integer)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime gives, optimized as it pleases; the reference must agree."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, feed)
    for result, expected in zip(results, ReferenceEvaluator(model).run(None, feed), strict=True):
        np.testing.assert_array_equal(result, expected)
    return results


def calling(operator: str, feed: dict[str, np.ndarray], outputs: int = 1, opset: int = 20, **attributes: int):
    """A model of one operator whose inputs are those of the model."""
    dtype = attributes.get("dtype", onnx.TensorProto.FLOAT)
    names = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(operator, list(feed), names, domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feed.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in names],
    )
    return helper.make_model(
        graph,
        ir_version=9,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[ir.serde.serialize_function(each) for each in functions([operator], opset)],
    )


def numbers(name: str) -> np.ndarray:
    """All values of a format, all ties between them, what lies next to a tie, and what lies beyond the ends."""
    values = np.unique(get_format(name).values[np.isfinite(get_format(name).values)])
    ties = (values[1:] + values[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(side)) for side in (-1e30, 1e30)]
    far = np.float32([1e-30, -1e-30, 1e30, -1e30, 2 * values[-1], 2 * values[0]])
    return np.concatenate([values, ties, *beside, far]).astype(np.float32)


@pytest.mark.parametrize("opset", [19, 26])
@pytest.mark.parametrize("name", FORMATS)
def test_every_tie_is_rounded_as_the_format_does(name: str, opset: int) -> None:
    kind, scale = get_format(name), np.float32(0.25)
    feed = {"x": numbers(name) * scale, "scale": np.array(scale)}
    (y,) = run(calling(f"QuantizeDequantize{operator_suffix(kind)}", feed, opset=opset, dtype=1), feed)
    np.testing.assert_array_equal(y, kind.decode(kind.encode(feed["x"] / scale)) * scale)


@pytest.mark.parametrize("name", ["fp6_e3m2", "fp4_e2m1", "int4"])
def test_each_channel_has_its_scale_and_float16_stays_float16(name: str) -> None:
    kind, rng = get_format(name), np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 8)).astype(np.float16)
    scale = rng.uniform(0.01, 1, 8).astype(np.float32)
    feed = {"x": x, "scale": scale}
    (y,) = run(calling(f"QuantizeDequantize{operator_suffix(kind)}", feed, dtype=onnx.TensorProto.FLOAT16), feed)
    assert y.dtype == np.float16
    units = x.astype(np.float32) / scale
    np.testing.assert_array_equal(y, (kind.decode(kind.encode(units)) * scale).astype(np.float16))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_around_a_zero_point(name: str) -> None:
    kind = get_format(name)
    zero = np.float32(kind.low + 1)
    x = np.concatenate([np.arange(-20, 20), [-1e9, 1e9, 0.5, 1.5, 2.5]]).astype(np.float32) / 2
    feed = {"x": x, "scale": np.array(np.float32(0.5)), "zero_point": np.array(zero)}
    (y,) = run(calling(f"QuantizeDequantize{operator_suffix(kind)}Asymmetric", feed, dtype=1), feed)
    expected = (np.clip(np.rint(x / 0.5) + zero, kind.low, kind.high) - zero) * 0.5
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_magnitude_of_a_row_just_fits(name: str) -> None:
    kind = get_format(name)
    x = np.random.default_rng(0).standard_normal((2, 4, 16)).astype(np.float32)
    x[1, 2] = 0
    feed = {"x": x}
    (scale,) = run(calling(f"RowScale{operator_suffix(kind)}", feed), feed)
    assert scale.shape == (2, 4, 1)
    smallest = np.finfo(np.float32).smallest_normal
    np.testing.assert_array_equal(scale, np.maximum(np.abs(x).max(-1, keepdims=True) / kind.max_value, smallest))


@pytest.mark.parametrize("name", FORMATS)
def test_the_binade_of_the_largest_magnitude_becomes_the_highest_one(name: str) -> None:
    kind = get_format(name)
    powers = np.ldexp(np.float32(1), np.arange(-126, 128))
    beside = [np.nextafter(powers, np.float32(side)) for side in (0, np.inf)]
    ends = np.float32([0, 1e-40, np.finfo(np.float32).max])
    largest = np.concatenate([powers, *beside, ends])[:, None]
    feed = {"x": largest * np.float32([-1, 0.5, 0])}
    (scale,) = run(calling(f"RowBinade{operator_suffix(kind)}", feed), feed)
    octave = np.frexp(np.maximum(largest, powers[0]))[1] - 1
    wanted = np.ldexp(np.float32(1), np.clip(octave - int(np.floor(np.log2(kind.max_value))), -126, 126))
    np.testing.assert_array_equal(scale, wanted)


@pytest.mark.parametrize("name", INTEGERS)
def test_the_range_of_a_row_holds_its_ends_and_zero(name: str) -> None:
    kind, suffix = get_format(name), operator_suffix(get_format(name))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32) + np.linspace(-3, 3, 64)[:, None]
    feed = {"x": x.astype(np.float32)}
    scale, zero = run(calling(f"RowRange{suffix}", feed, outputs=2), feed)
    assert (scale > 0).all()
    assert ((zero >= kind.low) & (zero <= kind.high) & (zero == np.rint(zero))).all()
    low, high = np.minimum(feed["x"].min(-1, keepdims=True), 0), np.maximum(feed["x"].max(-1, keepdims=True), 0)
    # Rounding the zero point moves both ends by half a step at most.
    assert ((kind.low - zero) * scale <= low + 0.51 * scale).all()
    assert ((kind.high - zero) * scale >= high - 0.51 * scale).all()


def test_formats_that_no_standard_operator_rounds_to_are_refused() -> None:
    assert not is_roundable(get_format("nf4"))
    assert not is_roundable(get_format("fp4_e3m0"))
    assert {name for name in NAMED_FORMATS if not is_roundable(get_format(name))} == {"nf4", "fp4_e3m0"}
    assert all(is_roundable(Minifloat(e, m)) for e, m in ((2, 1), (1, 2), (3, 2), (5, 2)))
