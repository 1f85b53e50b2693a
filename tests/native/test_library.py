"""Finding the library, registering it, and what it refuses."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxq
from onnxq.formats import NAMED_FORMATS, Integer
from onnxq.functions import operator_suffix
from onnxq.runtime.native import native_library
from onnxq.runtime.register import register

X = {"x": np.ones((1, 40), np.float32)}


def test_the_library_is_there():
    assert native_library().problem is None, "build it: pip install . or cmake (CONTRIBUTING.md)"


def test_every_named_format_has_its_operators(open_session):
    told = set()
    for kind in NAMED_FORMATS.values():
        for family in ("MatMul", "Linear", "Dequantize"):
            told.add(family + operator_suffix(kind))
            if isinstance(kind, Integer):
                told.add(f"{family}{operator_suffix(kind)}Asymmetric")
    assert native_library().operators == told


def test_registering_twice_is_harmless(weight, open_session):
    model = weight("int4", (40, 30), 32).model()
    options = onnxruntime.SessionOptions()
    assert onnxq.register(options)
    assert onnxq.register(options)
    options.register_custom_ops_library(str(native_library().path))
    for _ in range(2):
        onnxq.session(model, options=options).run(None, X)


def test_sessions_have_the_kernels_by_default_and_can_go_without(weight, open_session):
    model = weight("int4", (40, 30), 32).model()
    onnxq.session(model).run(None, X)
    with pytest.raises(onnxq.OnnxqError, match="operator MatMulINT4 of domain onnxq is unknown"):
        onnxq.session(model, native=False)


@pytest.mark.parametrize("there", [False, True])
def test_without_a_library_the_function_runs(there, weight, tmp_path, monkeypatch):
    path = tmp_path / "library.so"
    if there:
        path.write_bytes(b"not a library")
    monkeypatch.setenv("ONNXQ_NATIVE_LIBRARY", str(path))
    assert not register(onnxruntime.SessionOptions())
    assert ("cannot be loaded" if there else "there is no file") in native_library().problem
    assert str(path) in native_library().problem
    made = weight("int4", (40, 30), 32)
    (y,) = onnxq.session(made.model(functions_too=True)).run(None, X)
    np.testing.assert_allclose(y, made.product(X["x"])[0], rtol=1e-4, atol=1e-4)


def test_an_unknown_instruction_set_is_answered_with_those_there_are(weight, open_session, monkeypatch):
    monkeypatch.setenv("ONNXQ_CPU_ISA", "avx1024")
    with pytest.raises(Exception, match=r"ONNXQ_CPU_ISA is 'avx1024'; this CPU can run: .*plain"):
        open_session(weight("int4", (40, 30), 32).model())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"shape": None}, "attribute shape, at most 16 integers, is missing"),
        ({"shape": 40}, r"attribute shape has 0 numbers; it is \[K, N\]"),
        ({"shape": [40, 15, 2]}, r"attribute shape has 3 numbers; it is \[K, N\]"),
        ({"shape": [-40, 30]}, "negative dimension, -40"),
        ({"shape": [2**40, 2**40]}, r"more than 2\^48 elements"),
        ({"shape": [40, 31]}, "packed is 600 elements of uint8; 1240 codes of 4 bits are 620 bytes"),
        ({"block_size": None}, "attribute block_size, an integer, is missing"),
        ({"block_size": 0}, "attribute block_size is 0; it is 1 or more"),
        ({"block_size": 2**63 - 1}, r"scale has shape \[2, 30\]; a weight with blocks of \d+ along axis 0 .*\[1, 30\]"),
        (
            {"block_size": 16},
            r"scale has shape \[2, 30\]; a weight with blocks of 16 along axis 0 has scales of \[3, 30\]",
        ),
        ({"dtype": None}, "attribute dtype, an integer, is missing"),
        ({"dtype": 10}, r"attribute dtype is 10, and the type of the result is float \(1\)"),
    ],
    ids=str,
)
def test_bad_attributes_are_named_with_the_node(changed, says, weight, open_session):
    model = weight("int4", (40, 30), 32).model(attributes=changed)
    with pytest.raises(Exception, match=rf"onnxq MatMulINT4 \(node 'node'\): .*{says}"):
        open_session(model)


@pytest.mark.parametrize("axis", [-1, 2, None])
def test_a_bad_axis_is_named(axis, weight, open_session):
    model = weight("int4", (40, 30), 32).model("Dequantize", attributes={"axis": axis})
    with pytest.raises(Exception, match=r"onnxq DequantizeINT4 \(node 'node'\): attribute axis"):
        open_session(model, dequantize=True)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("packed", np.zeros(599, np.uint8), "packed is 599 elements"),
        ("packed", np.zeros(0, np.uint8), "packed is 0 elements"),
        ("scale", np.ones((2, 29), np.float32), r"scale has shape \[2, 29\]"),
        ("scale", np.ones(30, np.float32), r"scale has shape \[30\]"),
        ("scale", np.ones((0, 30), np.float32), r"scale has shape \[0, 30\]"),
        ("scale", np.ones((2, 30), np.float64), "scale is another type; it is float, float16 or bfloat16"),
        ("zero_point", np.zeros(31, np.uint8), "zero_point is 31 elements of uint8; 60 codes of 4 bits are 30 bytes"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_named(name, array, says, constant, weight, open_session):
    made = weight("int4", (40, 30), 32, asymmetric=True)
    made.inputs[name] = array
    # What is constant is refused when the session is made, and what is not when it runs.
    with pytest.raises(Exception, match=rf"onnxq MatMulINT4Asymmetric \(node 'node'\): {says}"):
        open_session(made.model(constant=constant)).run(None, X | ({} if constant else made.inputs))


@pytest.mark.parametrize("shape", [(1, 39), (39,), ()], ids=str)
def test_activations_that_do_not_fit_are_named(shape, weight, open_session):
    opened = open_session(weight("int4", (40, 30), 32).model(x_shape=[None] * len(shape)))
    with pytest.raises(Exception, match=r"the last dimension of x is \d+; the weight has K = 40"):
        opened.run(None, {"x": np.ones(shape, np.float32)})


def test_a_model_of_doubles_is_refused_by_type(weight, open_session):
    made = weight("int4", (40, 30), 32)
    node = made.node("MatMul", "float32", {})
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["M", 40])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(array, name) for name, array in made.inputs.items()],
    )
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("onnxq", 1)]
    with pytest.raises(Exception, match=r"Type 'tensor\(double\)' of input parameter \(x\)"):
        open_session(helper.make_model(graph, ir_version=13, opset_imports=opsets).SerializeToString())


def test_the_library_needs_only_the_c_library():
    done = subprocess.run(["readelf", "-d", str(native_library().path)], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2"}


def test_nothing_is_loaded_before_it_is_needed():
    code = "import onnxq.runtime.session, sys; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_dimensions_that_nothing_is_known_of_stay_open():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[B, S, 40] x, int64[3] shape) => (float[P, Q, 30] y) {
      reshaped = Reshape(x, shape)
      product = MatMul(reshaped, w)
      y = Add(product, c)
    }"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, dims in (("w", (40, 30)), ("c", (1, 3, 30))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(dims, np.float32), name))
    small = onnxq.quantize_proto(model, "fp6-e2m3")[0].SerializeToString()
    feed = {"x": rng.standard_normal((6, 1, 40), np.float32), "shape": np.array([2, 3, 40])}
    native, function = (onnxq.session(small, native=each).run(None, feed)[0] for each in (True, False))
    assert native.shape == (2, 3, 30)
    np.testing.assert_allclose(native, function, rtol=1e-5, atol=1e-5)
