"""Native matmuls give what numpy gives in float64, whatever the format, the shape and the CPU."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from onnxq.formats import NAMED_FORMATS, Integer

FORMATS = [(name, False) for name in NAMED_FORMATS] + [
    (name, True) for name, kind in NAMED_FORMATS.items() if isinstance(kind, Integer)
]
# Rows that take every way through the kernels: one, a few, and many, with tiles of each height.
ROWS = (1, 2, 3, 4, 5, 7, 8, 13)
# K, N, block: none a multiple of anything, rows that begin within a byte, blocks that end within a run of rows.
RAGGED = ((1, 1, 1), (33, 65, 16), (70, 131, 32), (64, 256, 64), (129, 300, 100), (40, 7, 40))


def activations(m, k, dtype="float32", seed=1):
    x = np.random.default_rng(seed).standard_normal((m, k)).astype(np.float32)
    return x.astype(getattr(ml_dtypes, dtype, None) or dtype)


@pytest.mark.parametrize(("name", "asymmetric"), FORMATS, ids=str)
def test_every_format_on_every_instruction_set(name, asymmetric, isa, weight, open_session, assert_close):
    for seed, (k, n, block) in enumerate(RAGGED):
        made = weight(name, (k, n), block, asymmetric=asymmetric, seed=seed)
        opened = open_session(made.model())
        for m in ROWS:
            x = activations(m, k)
            assert_close(opened.run(None, {"x": x})[0], *made.product(x))


@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_of_activations_and_scales(dtype, scale, isa, weight, open_session, assert_close):
    for (k, n, block), one in itertools.product(RAGGED, (False, True)):
        made = weight("fp6_e3m2", (k, n), block, scale=scale, one=one)
        opened = open_session(made.model(dtype=dtype))
        for m in (1, 3, 9):
            x = activations(m, k, dtype)
            assert_close(opened.run(None, {"x": x})[0], *made.product(x), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "asymmetric"), [("fp6_e2m3", False), ("int4", True)])
def test_a_bias_is_added_to_each_row(name, asymmetric, dtype, isa, weight, open_session, assert_close):
    for k, n, block in (*RAGGED, (700, 5000, 32), (0, 9, 16)):
        made = weight(name, (k, n), block, asymmetric=asymmetric, bias=dtype)
        opened = open_session(made.model(dtype=dtype))
        for m in (0, *ROWS):
            x = activations(m, k, dtype)
            assert_close(opened.run(None, {"x": x})[0], *made.product(x), dtype)


@pytest.mark.parametrize("constant", [False, True])
def test_a_bias_of_another_length_is_refused(constant, weight, open_session):
    def run(model, feeds):
        open_session(model).run(None, feeds)

    made = weight("int4", (40, 30), 32, bias="float32")
    made.inputs["bias"] = np.zeros(31, np.float32)
    model, feeds = made.model(constant=constant), {} if constant else made.inputs
    with pytest.raises(Exception, match=r"LinearINT4 .*bias has shape \[31\]; the weight has N = 30"):
        run(model, {"x": activations(1, 40)} | feeds)


def test_bfloat16_activations(isa, weight, open_session, assert_close):
    made = weight("fp6_e2m3", (70, 131), 32)
    opened = open_session(made.model(dtype="bfloat16"))
    for m in (1, 3, 9):
        x, y = activations(m, 70, "bfloat16"), np.full((m, 131), np.nan, ml_dtypes.bfloat16)
        binding = opened.io_binding()
        binding.bind_input("x", "cpu", 0, 16, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, 16, y.shape, y.ctypes.data)
        opened.run_with_iobinding(binding)
        assert_close(y, *made.product(x), "bfloat16")


@pytest.mark.parametrize(
    ("m", "k", "n", "block"),
    [
        pytest.param(1, 8191, 1021, 128, id="one row, odd"),
        pytest.param(1, 2048, 8192, 32, id="one row, blocks of 32"),
        pytest.param(1, 8192, 1, 16, id="one column"),
        pytest.param(4, 1023, 8190, 1023, id="few rows, one block"),
        pytest.param(8192, 1, 77, 16, id="K = 1"),
        pytest.param(257, 515, 1025, 256, id="more rows than a block of results"),
        pytest.param(1000, 100, 129, 16, id="many rows"),
    ],
)
@pytest.mark.parametrize("name", ["fp6_e2m3", "int4"])
def test_large_and_ragged(name, m, k, n, block, weight, open_session, assert_close):
    made = weight(name, (k, n), block, asymmetric=name == "int4")
    x = activations(m, k)
    y = open_session(made.model()).run(None, {"x": x})[0]
    # Sums of K products; float32 adds a rounding each, in whatever order.
    expected, magnitudes = made.product(x)
    assert_close(y, expected, magnitudes * max(1, k / 4096))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (2, 1, 3, 5), (0, 5), (2, 0, 3, 5)], ids=str)
def test_leading_dimensions(shape, weight, open_session, assert_close):
    made = weight("fp4_e2m1", (5, 9), 16)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    opened = open_session(made.model(x_shape=[f"D{at}" for at in range(len(shape) - 1)] + [5]))
    assert opened.get_outputs()[0].shape == [f"D{at}" for at in range(len(shape) - 1)] + [9]
    assert_close(opened.run(None, {"x": x})[0], *made.product(x))


def test_nothing_to_add_gives_zero_and_no_columns_give_nothing(weight, open_session):
    opened = open_session(weight("int4", (0, 9), 16).model())
    assert opened.run(None, {"x": np.empty((3, 0), np.float32)})[0].tolist() == [[0.0] * 9] * 3
    opened = open_session(weight("int4", (9, 0), 16).model())
    assert opened.run(None, {"x": np.ones((3, 9), np.float32)})[0].shape == (3, 0)


@pytest.mark.parametrize("m", [1, 3, 9])
@pytest.mark.parametrize("name", ["fp6_e2m3", "int4", "int3", "nf4", "int8"])
def test_no_byte_is_read_or_written_beyond_a_tensor(name, m, isa, weight, open_session, assert_close, guarded):
    for k, n, block in RAGGED:
        made = weight(name, (k, n), block, asymmetric=name == "int4")
        opened = open_session(made.model(constant=False))
        x = activations(m, k)
        binding = opened.io_binding()
        # Every tensor ends at the end of a page, at whatever address that makes it begin.
        inputs = {each: guarded(array) for each, array in {"x": x, **made.inputs}.items()}
        for each, at in inputs.items():
            binding.bind_input(each, "cpu", 0, at.dtype.type, at.shape, at.address)
        around = np.full(1 + m * n + 1, np.nan, np.float32)
        y = guarded(around[1:])
        y.array.view(np.float32)[:] = np.nan
        binding.bind_output("y", "cpu", 0, np.float32, [m, n], y.address)
        opened.run_with_iobinding(binding)
        results = y.array.view(np.float32)
        assert_close(results[: m * n].reshape(m, n), *made.product(x))
        assert np.isnan(results[m * n :]).all()


def test_a_weight_that_equals_its_zero_point_is_zero(isa, weight, open_session):
    made = weight("uint4", (40, 70), 8, asymmetric=True)
    made.inputs["packed"] = np.full_like(made.inputs["packed"], 0x99)
    made.inputs["zero_point"] = np.full_like(made.inputs["zero_point"], 0x99)
    opened = open_session(made.model())
    for m in (1, 3, 9):
        assert not opened.run(None, {"x": activations(m, 40)})[0].any()


@pytest.mark.parametrize("m", [1, 4, 50])
def test_nan_and_infinity_pass_through(m, isa, weight, open_session):
    made = weight("fp6_e3m2", (64, 33), 32)
    x = activations(m, 64)
    x[0, 5] = np.nan
    y = open_session(made.model()).run(None, {"x": x})[0]
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1:]).all()


@pytest.mark.parametrize("bias", [None, "float32"])
def test_the_function_in_the_model_gives_the_same(bias, isa, weight, open_session, assert_close):
    for name, asymmetric in (("fp6_e2m3", False), ("int4", True), ("int3", False)):
        made = weight(name, (129, 77), 32, asymmetric=asymmetric, bias=bias)
        model = made.model(functions_too=True)
        x = activations(6, 129)
        native, function = (open_session(model, native=each).run(None, {"x": x})[0] for each in (True, False))
        assert_close(native, function.astype(np.float64), made.product(x)[1])


def test_threads_change_no_bit(weight, open_session):
    made = weight("fp6_e2m3", (300, 1100), 64)
    one, several = (open_session(made.model(), threads=threads) for threads in (1, 4))
    for m in ROWS:
        x = activations(m, 300)
        np.testing.assert_array_equal(one.run(None, {"x": x})[0], several.run(None, {"x": x})[0])


def test_sessions_run_at_the_same_time_and_after_others_are_closed(weight, open_session):
    made = [weight("fp6_e2m3", (128, 200 + at), 32, seed=at) for at in range(4)]
    x = activations(2, 128)
    for _ in range(3):
        sessions = [open_session(each.model()) for each in made]
        alone = [each.run(None, {"x": x})[0] for each in sessions]
        with ThreadPoolExecutor(8) as pool:
            runs = [pool.submit(sessions[at % 4].run, None, {"x": x}) for at in range(64)]
            for at, each in enumerate(runs):
                np.testing.assert_array_equal(each.result()[0], alone[at % 4])
        del sessions[:2]
        np.testing.assert_array_equal(sessions[0].run(None, {"x": x})[0], alone[2])
