"""Sessions of onnxruntime-gpu with the native operators, against float64."""

import itertools
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxq
from onnxq.api import quantize_proto
from onnxq.formats import get_format
from onnxq.formats.tiled import TILED_FORMATS, TILED_VERSION, pack_tiled
from onnxq.functions import functions, operator_suffix
from onnxq.recipes import parse_recipe

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[3]
TYPES = {"float16": 10, "float32": 1}
# Rows that every configuration of the table serves, and those at their ends.
ROWS = (1, 3, 8, 9, 17, 33, 64, 65, 130, 300, 700, 1100)
LIMIT = {"float16": 5e-4, "float32": 3e-6}


@pytest.fixture(scope="module")
def ort():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDAExecutionProvider")
    onnxruntime.preload_dlls()
    return onnxruntime


class Chain:
    """A model of products one after the other, each with a weight of its own, and what it means in float64."""

    def __init__(self, fmt, dims, dtype="float16", group=0, *, asymmetric=False, scale="float16", seed=0):
        import onnx_ir as ir

        rng, kind = np.random.default_rng(seed), get_format(fmt)
        self.dtype, self.weights, nodes, tensors = dtype, [], [], []
        for layer, (K, N) in enumerate(itertools.pairwise(dims)):
            block = group or K
            shape, rows = (-(-K // block), N), np.arange(K) // block
            codes = rng.integers(0, 2**kind.bits, (K, N), np.uint8)
            scales = (rng.uniform(0.5, 1.5, shape) / (kind.max_value * K**0.5)).astype(scale)
            zeros = rng.integers(0, 2**kind.bits, shape, np.uint8)
            values = kind.values[codes].astype(np.float64) - (kind.values[zeros][rows] if asymmetric else 0)
            self.weights.append(values * scales.astype(np.float64)[rows])
            units = np.pad(codes, ((0, -K % 128), (0, 0)))
            arrays = {f"p{layer}": pack_tiled(units, kind), f"s{layer}": scales}
            if asymmetric:
                arrays[f"z{layer}"] = zeros
            tensors += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
            operator = f"MatMul{operator_suffix(kind)}Tiled" + ("Asymmetric" if asymmetric else "")
            node = helper.make_node(operator, [f"x{layer}", *arrays], [f"x{layer + 1}"], f"n{layer}", domain="onnxq")
            attributes = {"shape": [K, N], "block_size": block, "dtype": TYPES[dtype], "layout": TILED_VERSION}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
            nodes.append(node)
        self.last = f"x{len(self.weights)}"
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x0", TYPES[dtype], ["M", dims[0]])],
            [helper.make_tensor_value_info(self.last, TYPES[dtype], ["M", dims[-1]])],
            tensors,
        )
        self.bytes = helper.make_model(
            graph,
            ir_version=10,
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("onnxq", 1)],
            functions=[ir.serde.serialize_function(each) for each in functions([nodes[0].op_type], 21)],
        ).SerializeToString()

    def x(self, M, seed=0):
        shape = (M, self.weights[0].shape[0])
        return np.random.default_rng(seed).standard_normal(shape).astype(self.dtype)

    def expected(self, x):
        for weight in self.weights:
            x = x.astype(np.float64) @ weight
            x = x.astype(self.dtype) if weight is not self.weights[-1] else x
        return x

    def error(self, y, x):
        expected = self.expected(x)
        assert y.shape == expected.shape
        return np.linalg.norm(y.astype(np.float64) - expected) / max(np.linalg.norm(expected), 1e-30)

    def session(self, ort, **provider):
        """With provider options, as a caller makes it who has his own."""
        options = ort.SessionOptions()
        assert onnxq.register(options, cuda=True)
        assert onnxq.register(options, cuda=True)
        return ort.InferenceSession(self.bytes, options, providers=[("CUDAExecutionProvider", provider)])


@pytest.mark.parametrize(
    ("fmt", "group", "asymmetric"),
    [
        *itertools.product(TILED_FORMATS, [0, 128], [False]),
        *itertools.product(["int4", "uint4"], [0, 32, 128], [True]),
        ("fp6_e3m2", 256, False),
        ("fp4_e2m1", 16, False),
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("K", [1152, 1088])
def test_products_of_any_rows(ort, fmt, group, asymmetric, dtype, K):
    chain = Chain(fmt, [K, 208], dtype, group, asymmetric=asymmetric, scale=dtype)
    opened = onnxq.session(chain.bytes, providers=["cuda"])
    for M in ROWS:
        x = chain.x(M)
        (y,) = opened.run(None, {"x0": x})
        assert chain.error(y, x) < LIMIT[dtype], M
    assert opened.run(None, {"x0": chain.x(0)})[0].shape == (0, 208)


def test_no_node_is_left_to_the_cpu(ort, tmp_path):
    chain, options = Chain("fp6_e3m2", [256, 256, 256]), ort.SessionOptions()
    assert onnxq.register(options, cuda=True)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(chain.bytes, options, providers=["CUDAExecutionProvider"])

    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in nodes] == ["MatMulFP6E3M2Tiled"] * 2


@pytest.mark.parametrize("dtype", TYPES)
def test_the_function_gives_the_same(ort, dtype):
    chain = Chain("fp6_e2m3", [256, 128], dtype)
    plain, x = onnxq.session(chain.bytes, providers=["cuda"], native=False), chain.x(5)
    assert chain.error(plain.run(None, {"x0": x})[0], x) < (1e-3 if dtype == "float32" else 2e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("M", [1, 16, 100])
def test_a_captured_graph_sees_new_input(ort, M, dtype):
    chain = Chain("fp6_e3m2", [1024] * 5, dtype)
    opened, bound = chain.session(ort, enable_cuda_graph="1"), None
    x, y = (ort.OrtValue.ortvalue_from_numpy(np.zeros((M, 1024), dtype), "cuda", 0) for _ in range(2))
    bound = opened.io_binding()
    bound.bind_ortvalue_input("x0", x)
    bound.bind_ortvalue_output(chain.last, y)
    for seed in range(6):
        given = chain.x(M, seed)
        x.update_inplace(given)
        opened.run_with_iobinding(bound)
        assert chain.error(y.numpy(), given) < 2e-3, seed


def test_sessions_and_threads_do_not_disturb_each_other(ort):
    chains = [Chain(fmt, [1152, 256, 640], group=128, seed=seed) for seed, fmt in enumerate(("fp6_e3m2", "fp4_e2m1"))]
    sessions = [onnxq.session(chain.bytes, providers=["cuda"]) for chain in chains for _ in range(2)]
    found = {}

    def work(number):
        chain, opened = chains[number // 2 % 2], sessions[number % 4]
        errors = []
        for seed in range(25):
            x = chain.x(1 + (seed * 7 + number) % 70, seed)
            errors.append(chain.error(opened.run(None, {"x0": x})[0], x))
        found[number] = max(errors)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found) == list(range(8))
    assert max(found.values()) < 2e-3, found


def test_a_stream_of_the_caller_is_used(ort):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    chain = Chain("fp6_e3m2", [1024] * 3)
    opened = chain.session(ort, user_compute_stream=str(stream.ptr))
    for seed in range(3):
        x = chain.x(7, seed)
        assert chain.error(opened.run(None, {"x0": x})[0], x) < 2e-3


def test_a_session_outlives_another(ort):
    chain = Chain("int4", [256, 256], group=32)
    first, second = (chain.session(ort) for _ in range(2))
    x = chain.x(4)
    first.run(None, {"x0": x})
    del first
    assert chain.error(second.run(None, {"x0": x})[0], x) < 5e-4


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("fmt", "asymmetric"), [("fp6_e2m3", False), ("uint4", True)])
def test_a_bias_is_added(ort, fmt, asymmetric, dtype):
    chain = Chain(fmt, [1152, 208], dtype, 128, asymmetric=asymmetric)
    model, bias = onnx.ModelProto.FromString(chain.bytes), np.random.default_rng(5).standard_normal(208).astype(dtype)
    (node,) = model.graph.node
    node.op_type = node.op_type.replace("MatMul", "Linear")
    node.input.append("bias")
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    del model.functions[:]
    opened = onnxq.session(model.SerializeToString(), providers=["cuda"])
    for M in (1, 17, 300):
        x = chain.x(M)
        expected = chain.expected(x) + bias.astype(np.float64)
        (y,) = opened.run(None, {"x0": x})
        assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < LIMIT[dtype], M


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("recipe", ["fp6-e3m2", "nvfp4", "int4"])
def test_weights_need_not_fill_up_units(ort, dtype, recipe):
    rng, kind = np.random.default_rng(7), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {"w": rng.standard_normal((1088, 203)) / 34, "b": rng.standard_normal(203)}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["M", 1088])],
        [helper.make_tensor_value_info("y", kind, ["M", 203])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    made, _ = quantize_proto(model, recipe, target="ort-cuda")
    for M in (1, 17, 300):
        x = rng.standard_normal((M, 1088)).astype(dtype)
        y, expected = (
            onnxq.session(made.SerializeToString(), providers=[each], accuracy_level=1).run(None, {"x": x})[0]
            for each in ("cuda", "cpu")
        )
        assert y.shape == (M, 203)
        y, expected = y.astype(np.float64), expected.astype(np.float64)
        assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < (2e-3 if dtype == "float16" else 1e-5), M


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("fmt", "group", "asymmetric"), [("fp6_e2m3", 0, False), ("uint4", 32, True)])
def test_gate_and_up_come_from_one_product(ort, fmt, group, asymmetric, dtype):
    chain = Chain(fmt, [1152, 416], dtype, group, asymmetric=asymmetric, scale=dtype)
    model = onnx.ModelProto.FromString(chain.bytes)
    (node,) = model.graph.node
    node.op_type = node.op_type.replace("MatMul", "SwiGLU")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 208
    del model.functions[:]
    opened = onnxq.session(model.SerializeToString(), providers=["cuda"])
    for M in ROWS:
        x = chain.x(M)
        gate, up = (x.astype(np.float64) @ chain.weights[0]).reshape(M, 13, 2, 16).transpose(2, 0, 1, 3)
        expected = (gate / (1 + np.exp(-gate)) * up).reshape(M, 208)
        (y,) = opened.run(None, {"x0": x})
        assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < LIMIT[dtype], M
    assert opened.run(None, {"x0": chain.x(0)})[0].shape == (0, 208)


def test_leading_dimensions_stay(ort):
    chain = Chain("fp6_e3m2", [256, 48])
    x = chain.x(6)
    model = onnx.ModelProto.FromString(chain.bytes)
    for value, last in ((model.graph.input[0], 256), (model.graph.output[0], 48)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, 10, ["a", "b", last]))
    (y,) = onnxq.session(model.SerializeToString(), providers=["cuda"]).run(None, {"x0": x.reshape(2, 3, 256)})
    assert y.shape == (2, 3, 48)
    assert chain.error(y.reshape(6, 48), x) < 5e-4


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"layout": 1}, "attribute layout is 1; this version of onnxq knows 2"),
        ({"shape": [256, 40]}, r"attribute shape is \[256, 40\]; the GPU kernels take"),
        ({"shape": [384, 48]}, r"packed has shape \[3, 2, 1536\]; a weight \[384, 48\] .* has \[3, 3, 1536\]"),
        ({"block_size": 48}, "attribute block_size is 48; the GPU kernels take"),
        ({"block_size": 128}, r"scale has shape \[1, 48\]; .* with blocks of 128 has \[2, 48\]"),
        ({"dtype": 1}, r"attribute dtype is 1, and the type of the result is float16 \(10\)"),
    ],
    ids=str,
)
def test_bad_attributes_are_named_with_the_node(ort, changed, says):
    model = onnx.ModelProto.FromString(Chain("fp6_e3m2", [256, 48]).bytes)
    (node,) = model.graph.node
    for name, value in changed.items():
        (old,) = (each for each in node.attribute if each.name == name)
        old.CopyFrom(helper.make_attribute(name, value))
    del model.functions[:]
    with pytest.raises(onnxq.OnnxqError, match=rf"onnxq MatMulFP6E3M2Tiled \(node 'n0'\): {says}"):
        onnxq.session(model.SerializeToString(), providers=["cuda"])


@pytest.mark.parametrize("recipe", ["fp6", "fp4", "mxfp6", "int4"])
def test_a_language_model_answers_as_on_the_cpu(ort, recipe, tmp_path):
    made, answers = tmp_path / "small.onnx", []
    onnxq.quantize(ROOT / "samples/code_lm/model.onnx", recipe, output=made, target="ort-cuda")
    tokens = np.load(ROOT / "samples/code_lm/heldout.npy")[:64].astype(np.int64).reshape(1, -1)
    for provider in ("cpu", "cuda"):
        opened = onnxq.session(made, providers=[provider], accuracy_level=1)
        feed = {each.name: tokens if each.name == "input_ids" else np.ones_like(tokens) for each in opened.get_inputs()}
        answers.append(opened.run(None, feed)[0])
    assert np.abs(answers[0] - answers[1]).max() < 2e-3 * np.abs(answers[0]).max()


def tied(dtype, spec, tokens=1000, width=512):
    """An embedding that is the output head too, quantized for GPU kernels."""
    rng, kind = np.random.default_rng(0), TYPES[dtype]
    table = (rng.standard_normal((tokens, width)) / width**0.5).astype(dtype)
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["e"], "embedding"),
        helper.make_node("Transpose", ["t"], ["w"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "w"], ["y"], "head"),
    ]
    values = [helper.make_tensor_value_info(name, kind, ["B", "S", n]) for name, n in (("y", tokens), ("e", width))]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("i", 7, ["B", "S"])], values, [numpy_helper.from_array(table, "t")]
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    rule = f"rules:\n  - match: {{role: [embedding, head]}}\n    weight: {spec}"
    return quantize_proto(model, parse_recipe(rule), target="ort-cuda")[0]


@pytest.mark.parametrize("tokens", [1000, 1024])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "spec", ["{format: fp6_e2m3}", "{format: uint4, granularity: group, group_size: 32, symmetric: false}"]
)
def test_an_embedding_and_its_head_read_the_same_tiles_in_a_captured_graph(ort, spec, dtype, tokens):
    made = tied(dtype, spec, tokens).SerializeToString()
    asked, plain = np.array([[3], [tokens - 1], [0], [-1]]), onnxq.session(made, providers=["cpu"])
    options = ort.SessionOptions()
    assert onnxq.register(options, cuda=True)
    opened = ort.InferenceSession(made, options, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    bound, i = opened.io_binding(), ort.OrtValue.ortvalue_from_numpy(np.zeros_like(asked), "cuda", 0)
    y, e = (ort.OrtValue.ortvalue_from_numpy(np.zeros((4, 1, n), dtype), "cuda", 0) for n in (tokens, 512))
    bound.bind_ortvalue_input("i", i)
    for name, value in (("y", y), ("e", e)):
        bound.bind_ortvalue_output(name, value)
    for shift in range(4):
        given = np.roll(asked, shift)
        i.update_inplace(given)
        opened.run_with_iobinding(bound)
        products, rows = plain.run(None, {"i": given})
        np.testing.assert_array_equal(e.numpy(), rows)
        norm = np.linalg.norm(products.astype(np.float64))
        assert np.linalg.norm(y.numpy().astype(np.float64) - products) < 2e-3 * norm


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_any_tokens_are_looked_up(ort, kind):
    made = tied("float16", "{format: fp4_e2m1, granularity: group, group_size: 128}")
    made.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    opened, plain = (onnxq.session(made.SerializeToString(), providers=[each]) for each in ("cuda", "cpu"))
    for shape in ((1, 1), (3, 50), (2, 0), (0, 4)):
        indices = np.random.default_rng(0).integers(-1000, 1000, shape).astype(kind)
        (rows,) = opened.run(["e"], {"i": indices})
        assert rows.shape == (*shape, 512)
        if indices.size:
            np.testing.assert_array_equal(rows, plain.run(["e"], {"i": indices})[0])
