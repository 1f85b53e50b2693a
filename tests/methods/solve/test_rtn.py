"""Round to nearest: every code is the nearest to its weight for the scale that is stored, and every scale is sane."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import NonFiniteError
from onnxq.formats import NAMED_FORMATS, SCALE_TYPES, Integer, get_format, get_scale_type
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import rtn

SYMMETRIC = [name for name in NAMED_FORMATS if not name.startswith("uint")]
INTEGERS = [name for name, each in NAMED_FORMATS.items() if isinstance(each, Integer)]


def spread(each: np.ndarray, k: int, block: int | None) -> np.ndarray:
    """Scales of groups as scales of rows."""
    return np.repeat(each, block or k, axis=1)[:, :k]


def nearest_distance(units: np.ndarray, values: np.ndarray) -> np.ndarray:
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    at = np.searchsorted(values, units).clip(1, len(values) - 1)
    return np.minimum(np.abs(units - values[at - 1]), np.abs(units - values[at]))


def solve(weight, kinds, *, block, scale_type, symmetric=True):
    return rtn.solve(weight, GridSpec(kinds, block, scale_type, symmetric))


@st.composite
def problems(draw):
    a, k, c = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((a, k, c)) * 10.0 ** draw(st.integers(-44, 36))
    if draw(st.booleans()):
        weight[:, :, draw(st.integers(0, c - 1))] = draw(st.sampled_from([0.0, 1.0, -1e-3]))
    if draw(st.booleans()):
        weight = np.abs(weight)
    dtype = draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
    largest = float(ml_dtypes.finfo(dtype).max)
    symmetric = draw(st.booleans())
    name = draw(st.sampled_from(SYMMETRIC if symmetric else INTEGERS))
    scales = [each for each in SCALE_TYPES if symmetric or each not in ("e8m0", "e4m3")]
    block = draw(st.one_of(st.none(), st.just(k), st.integers(2, 80)))
    return weight.clip(-largest, largest).astype(dtype), name, draw(st.sampled_from(scales)), block, symmetric


@given(problems())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_codes_are_nearest_and_scales_sane(problem) -> None:
    weight, name, scale_name, block, symmetric = problem
    kind, scale_type = get_format(name), get_scale_type(scale_name)
    solution = solve(weight, [kind], block=block, scale_type=scale_type, symmetric=symmetric)
    k = weight.shape[1]
    groups = 1 if block is None else -(-k // block)
    assert solution.scale.shape == ((1, 1, 1) if block is None else (weight.shape[0], groups, weight.shape[2]))
    assert solution.scale.dtype == scale_type.dtype
    stored = solution.scale.astype(np.float64)
    assert np.isfinite(stored).all()
    assert (stored >= scale_type.smallest).all()
    scale = solution.scale.astype(np.float32)
    if solution.tensor_scale is not None:
        assert np.finfo(np.float32).smallest_normal <= solution.tensor_scale < np.inf
        scale = scale * solution.tensor_scale
    assert (scale >= np.finfo(np.float32).smallest_normal).all()
    assert np.isfinite(scale).all()

    exact, rows = weight.astype(np.float64), spread(scale.astype(np.float64), k, block)
    values = kind.values.astype(np.float64)
    taken, zero = values[solution.codes], 0.0
    if solution.zero_point is not None:
        zero = spread(values[solution.zero_point], k, block)
        assert not symmetric
    units = exact / rows + zero
    # Division and addition are in float32: half a unit in the last place of each can turn a tie.
    slack = np.maximum(np.abs(units) + np.abs(zero), np.abs(taken)) * 2.0**-22
    assert (np.abs(units - taken) <= nearest_distance(units, values) + slack).all()
    decoded = (taken - zero) * rows
    np.testing.assert_allclose(solution.decode(), decoded, rtol=1e-6, atol=1e-45)
    error, norm = ((decoded - exact) ** 2).sum(), (exact**2).sum()
    np.testing.assert_allclose(solution.squared_norm, norm, rtol=1e-4)
    np.testing.assert_allclose(solution.squared_error, error, rtol=1e-2, atol=1e-9 * norm)


@pytest.mark.parametrize("scale", SCALE_TYPES)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_zeros_stay_zeros(name: str, scale: str) -> None:
    solution = solve(np.zeros((2, 5, 3), np.float32), [get_format(name)], block=2, scale_type=get_scale_type(scale))
    assert not solution.decode().any()
    assert (solution.scale.astype(np.float32) == 1).all()
    assert solution.sqnr_db == float("inf")


@pytest.mark.parametrize("name", INTEGERS)
def test_constant_weights_are_exact_with_a_zero_point(name: str) -> None:
    weight = np.full((1, 64, 4), -0.7, np.float32)
    solution = solve(weight, [get_format(name)], block=32, scale_type=get_scale_type("fp32"), symmetric=False)
    np.testing.assert_allclose(solution.decode(), weight, rtol=1e-6)


def test_zero_is_always_exact() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((1, 64, 50)) + rng.uniform(-3, 3, 50)).astype(np.float32)
    weight[0, ::7] = 0
    for name in INTEGERS:
        solution = solve(weight, [get_format(name)], block=16, scale_type=get_scale_type("fp16"), symmetric=False)
        assert not solution.decode()[0, ::7].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [None, 16, 40])
def test_non_finite_is_counted(bad: float, block: int | None) -> None:
    weight = np.ones((1, 40, 3), np.float32)
    weight[0, 39, 2] = weight[0, 3, 1] = bad
    with pytest.raises(NonFiniteError, match="2 NaN or Inf"):
        solve(weight, [get_format("int4")], block=block, scale_type=get_scale_type("fp32"))


def test_the_format_with_the_smaller_error_is_taken() -> None:
    rng = np.random.default_rng(0)
    kinds = [get_format("fp6_e2m3"), get_format("fp6_e3m2")]
    normal = rng.standard_normal((1, 256, 8)).astype(np.float32)
    heavy = (rng.standard_t(1.5, (1, 256, 8))).astype(np.float32)
    for weight, expected in ((normal, "fp6_e2m3"), (heavy, "fp6_e3m2")):
        alone = [solve(weight, [kind], block=256, scale_type=get_scale_type("fp32")) for kind in kinds]
        chosen = solve(weight, kinds, block=256, scale_type=get_scale_type("fp32"))
        assert chosen.format.name == expected
        assert chosen.squared_error == min(each.squared_error for each in alone)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 70001), (1, 70001, 1), (3, 513, 257), (40000, 3, 1), (2, 1, 1)])
@pytest.mark.parametrize("block", [None, 2, 128, 100000])
def test_pieces_that_fit_the_cache_make_no_difference(shape: tuple[int, int, int], block: int | None) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kind = get_format("int8")
    solution = solve(weight, [kind], block=block, scale_type=get_scale_type("fp32"))
    size = block or shape[1]
    rows = np.arange(shape[1]) // size
    absmax = np.zeros((shape[0], rows[-1] + 1, shape[2]), np.float32)
    for group in range(rows[-1] + 1):
        absmax[:, group] = np.abs(weight[:, rows == group]).max(axis=1)
    scale = (absmax.max(keepdims=True) if block is None else absmax) / np.float32(127)
    np.testing.assert_array_equal(solution.scale, scale)
    expected = np.rint(weight / (scale if block is None else scale[:, rows])).astype(np.int8)
    np.testing.assert_array_equal(solution.codes.view(np.int8), expected)


def test_a_view_of_read_only_memory_is_enough() -> None:
    weight = np.frombuffer(np.random.default_rng(0).standard_normal(600).astype(np.float32).tobytes(), np.float32)
    turned = weight.reshape(20, 30).T[None]
    args = {"block": 7, "scale_type": get_scale_type("fp16")}
    one = solve(turned, [get_format("fp4_e2m1")], **args)
    other = solve(np.ascontiguousarray(turned), [get_format("fp4_e2m1")], **args)
    np.testing.assert_array_equal(one.codes, other.codes)


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 0, 4), (1, 4, 0)])
def test_empty_weights_have_no_codes(shape: tuple[int, int, int]) -> None:
    solution = solve(np.empty(shape, np.float32), [get_format("int4")], block=2, scale_type=get_scale_type("fp32"))
    assert solution.codes.shape == shape
    assert solution.squared_error == 0
