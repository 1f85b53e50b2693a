"""At accuracy level 4 native matmuls round activations to int8, exactly as numpy does here; by default they do not."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import onnxq
from onnxq.formats import NAMED_FORMATS, Integer, pack
from onnxq.runtime.native import native_library, rounds_activations

DIGITS = Path(__file__).parents[2] / "samples" / "digits"

RUN = 32  # activations of a row that share a scale
# Instruction sets that round, and the formats whose values are bytes times one number.
WITH_INT8 = {"avx512vbmi", "avxvnni", "avx2"}
ROUNDED = {
    "fp6_e2m3",
    "fp5_e2m2",
    "fp4_e2m1",
    "fp4_e3m0",
    "fp4_e1m2",
    *("int2", "int3", "int4", "int5", "int6", "uint2", "uint4"),
}
FORMATS = [(name, asymmetric) for name in sorted(ROUNDED) for asymmetric in (False, True)]
FORMATS = [each for each in FORMATS if not each[1] or isinstance(NAMED_FORMATS[each[0]], Integer)]
ROWS = (0, 1, 2, 4, 5, 8, 13)
# K, N, block: K that ends within a run of activations and within four rows, rows that begin within a byte.
SHAPES = ((1, 1, 1), (33, 65, 33), (70, 131, 32), (64, 256, 64), (129, 300, 96), (40, 7, 64))


@pytest.fixture(params=native_library().instruction_sets or ("missing",))
def isa(request, monkeypatch):
    monkeypatch.setenv("ONNXQ_CPU_ISA", request.param)
    return request.param


def rounded(x):
    """[M, K] float64: x in multiples of the largest magnitude of its run / 127."""
    m, k = x.shape
    runs = np.zeros((m, -(-k // RUN), RUN), np.float32)
    runs.reshape(m, runs.shape[1] * RUN)[:, :k] = x
    largest = np.abs(runs).max(2, keepdims=True)
    factor = np.float32(127) / np.where(largest, largest, np.inf)
    codes = np.rint(runs * factor.astype(np.float32))
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(m, runs.shape[1] * RUN)[:, :k]


def activations(m, k, dtype="float32"):
    x = np.random.default_rng(m).standard_normal((m, k)) * np.exp(np.arange(k) % 7)
    return x.astype(getattr(ml_dtypes, dtype, None) or dtype)


def multiplied(made, x):
    """What a session at level 4 gives: more than one row is rounded, where this CPU's kernels round any."""
    rounds = len(x) > 1 and rounds_activations(made.operator("MatMul"), made.shape[0], made.block)
    return made.product(rounded(x) if rounds else x)


def test_the_formats_that_are_rounded(isa, weight):
    operators = {name: weight(name, (1, 1), 1).operator("MatMul") for name in NAMED_FORMATS}
    names = {name for name, operator in operators.items() if rounds_activations(operator, 64, 32)}
    assert names == (ROUNDED if isa in WITH_INT8 else set())


@pytest.mark.parametrize(("name", "asymmetric"), FORMATS, ids=str)
def test_every_format_on_every_instruction_set(name, asymmetric, isa, weight, open_session, assert_close):
    for seed, (k, n, block) in enumerate(SHAPES):
        made = weight(name, (k, n), block, asymmetric=asymmetric, seed=seed)
        opened = open_session(made.model(), int8=True)
        for m in ROWS:
            x = activations(m, k)
            assert_close(opened.run(None, {"x": x})[0], *multiplied(made, x))


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("scale", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_biases_and_shared_scales(dtype, scale, one, isa, weight, open_session, assert_close):
    for k, n, block in SHAPES:
        made = weight("fp6_e2m3", (k, n), block, scale=scale, one=one, bias=dtype)
        opened = open_session(made.model(dtype=dtype), int8=True)
        for m in (1, 3, 9):
            x = activations(m, k, dtype)
            assert_close(opened.run(None, {"x": x})[0], *multiplied(made, x), dtype)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 8191, 1021), (4, 1023, 8190), (257, 515, 1025), (1000, 100, 129)])
def test_large_and_ragged(m, k, n, isa, weight, open_session, assert_close):
    made = weight("int4", (k, n), 128, asymmetric=True)
    x = activations(m, k)
    assert_close(open_session(made.model(), int8=True).run(None, {"x": x})[0], *multiplied(made, x))


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_the_largest_products_fit(name, isa, weight, open_session, assert_close):
    made = weight(name, (64, 65), 64)
    kind, scales = made.kind, made.inputs["scale"].astype(np.float64)
    x = np.repeat([[1.0], [-1.0]], 64, axis=1).astype(np.float32)
    for code in (np.argmax(kind.values), np.argmin(kind.values)):
        made.inputs["packed"] = pack(np.full(made.shape, code, np.uint8), kind.bits)
        made.values = np.full(made.shape, np.float64(kind.values[code])) * scales
        y = open_session(made.model(), int8=True).run(None, {"x": x})[0]
        assert_close(y, *made.product(x))


@pytest.mark.parametrize(("name", "block"), [("fp6_e3m2", 32), ("nf4", 32), ("int8", 32), ("fp6_e2m3", 48)])
def test_what_is_not_rounded_stays_as_exact_as_before(name, block, isa, weight, open_session):
    made = weight(name, (96, 65), block)
    for m in (1, 5):
        x = activations(m, 96)
        results = [open_session(made.model(), int8=int8).run(None, {"x": x})[0] for int8 in (False, True)]
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("m", [1, 3, 9])
@pytest.mark.parametrize("name", ["fp6_e2m3", "int4", "int3"])
def test_no_byte_is_read_or_written_beyond_a_tensor(name, m, isa, weight, open_session, assert_close, guarded):
    for k, n, block in SHAPES:
        made = weight(name, (k, n), block, asymmetric=name == "int4")
        opened = open_session(made.model(constant=False), int8=True)
        x, y = activations(m, k), guarded(np.full((m, n), np.nan, np.float32))
        binding = opened.io_binding()
        inputs = {each: guarded(array) for each, array in {"x": x, **made.inputs}.items()}
        for each, at in inputs.items():
            binding.bind_input(each, "cpu", 0, at.dtype.type, at.shape, at.address)
        binding.bind_output("y", "cpu", 0, np.float32, [m, n], y.address)
        opened.run_with_iobinding(binding)
        assert_close(y.array.view(np.float32).reshape(m, n), *multiplied(made, x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_has_no_finite_result(value, isa, weight, open_session):
    opened = open_session(weight("fp6_e2m3", (64, 65), 32).model(), int8=True)
    x = activations(6, 64)
    expected = opened.run(None, {"x": x})[0]
    x[1, 40] = value
    y = opened.run(None, {"x": x})[0]
    others = np.arange(6) != 1
    np.testing.assert_array_equal(y[others], expected[others])
    assert not np.isfinite(y[1]).any()


def test_zeros_huge_and_tiny_activations(isa, weight, open_session):
    made = weight("fp6_e2m3", (64, 65), 32)
    opened = open_session(made.model(), int8=True)
    x = np.stack([np.zeros(64), np.full(64, 1e-38), np.where(np.arange(64) == 3, 3e38, 2e38)]).astype(np.float32)
    y = opened.run(None, {"x": x})[0]
    assert (y[0] == 0).all()
    assert (np.abs(y[1]) < 1e-35).all()
    assert np.isfinite(opened.run(None, {"x": x[2:] * np.float32(1e-3)})[0]).all()


def test_threads_change_no_bit(weight, open_session):
    made = weight("fp6_e2m3", (300, 1100), 64)
    one, several = (open_session(made.model(), threads=threads, int8=True) for threads in (1, 4))
    for m in ROWS:
        x = activations(m, 300)
        np.testing.assert_array_equal(one.run(None, {"x": x})[0], several.run(None, {"x": x})[0])


@pytest.mark.parametrize("level", [None, 0, 1, 4])
def test_a_session_rounds_at_level_4_only(level, weight, assert_close):
    made = weight("fp6_e2m3", (64, 65), 32)
    x = activations(3, 64)
    opened = onnxq.session(made.model(functions_too=True), providers=["cpu"], accuracy_level=level)
    assert_close(opened.run(None, {"x": x})[0], *(multiplied(made, x) if level == 4 else made.product(x)))


def test_sessions_of_both_kinds_at_once(weight, open_session, assert_close):
    made = weight("fp6_e2m3", (64, 65), 32)
    x = activations(3, 64)
    for options in ({}, {"int8": True}, {"dequantize": True}, {"int8": True, "dequantize": True}, {}):
        opened = open_session(made.model(), **options)
        expected = multiplied(made, x) if options.get("int8") else made.product(x)
        assert_close(opened.run(None, {"x": x})[0], *expected)


def test_a_sample_keeps_its_predictions(tmp_path, monkeypatch):
    monkeypatch.delenv("ONNXQ_CPU_ISA", raising=False)
    quantized = tmp_path / "vit.onnx"
    onnxq.quantize(DIGITS / "vit.onnx", "fp6-e2m3", output=quantized, target="native")
    exact, rounding = (onnxq.evaluate(quantized, data=DIGITS / "test.npz", accuracy_level=level) for level in (0, 4))
    products = sum(exact.execution.native.values())
    assert products > 0
    assert not exact.execution.native_int8
    fastest = native_library().instruction_sets[0]
    assert sum(rounding.execution.native_int8.values()) == (products if fastest in WITH_INT8 else 0)
    assert abs(exact.value - rounding.value) < 0.005
