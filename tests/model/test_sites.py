"""Which weights a model has, who reads them, and why some cannot be quantized."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from onnxq.model.operators import WEIGHT_OPERANDS, Layout
from onnxq.model.sites import Weight, find_weights

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "other": 1, "local": 1]>\n'
F32 = np.float32


def weights(text: str, dtype=F32, **shapes: tuple[int, ...]) -> dict[str, Weight]:
    """Weights by name; each initializer holds 0, 1, 2 ..."""
    proto = parser.parse_model(HEADER + text)
    for name, shape in shapes.items():
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return {weight.name: weight for weight in find_weights(ir.from_proto(proto))}


def obstacle(text: str, dtype=F32, **shapes: tuple[int, ...]) -> str | None:
    return weights(text, dtype, **shapes)["w"].obstacle


# name: (node, shape of w, layout in the shape in which it is quantized, that shape)
LAYOUTS = {
    "matmul": ("MatMul(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "matmul left": ("MatMul(w, x)", (5, 4), Layout(1, 0), (5, 4)),
    "matmul 3-D": ("MatMul(x, w)", (2, 4, 5), Layout(1, 2), (2, 4, 5)),
    "matmul left 4-D": ("MatMul(w, x)", (2, 2, 5, 4), Layout(3, 2), (2, 2, 5, 4)),
    "gemm": ("Gemm(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "gemm transB": ("Gemm<transB=1>(x, w)", (5, 4), Layout(0, 1), (4, 5)),
    "gemm transB=0": ("Gemm<transB=0>(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "gemm transA": ("Gemm<transA=1>(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "gemm left": ("Gemm(w, x)", (5, 4), Layout(1, 0), (5, 4)),
    "gemm left transA": ("Gemm<transA=1>(w, x)", (4, 5), Layout(1, 0), (5, 4)),
    "gemm left transB": ("Gemm<transB=1>(w, x)", (5, 4), Layout(1, 0), (5, 4)),
    "conv 1-D": ("Conv(x, w)", (6, 4, 3), Layout(1, 0, flatten=True), (6, 4, 3)),
    "conv 3-D": ("Conv(x, w)", (6, 4, 3, 3, 3), Layout(1, 0, flatten=True), (6, 4, 3, 3, 3)),
    "depthwise": ("Conv<group=6>(x, w)", (6, 1, 3), Layout(1, 0, flatten=True), (6, 1, 3)),
    "conv transpose": ("ConvTranspose(x, w)", (4, 6, 3), Layout(0, 1), (4, 6, 3)),
    "gather": ("Gather(w, i)", (9, 4), Layout(1, 0), (9, 4)),
    "gather axis 0": ("Gather<axis=0>(w, i)", (9, 4), Layout(1, 0), (9, 4)),
    "fused matmul": ("com.microsoft.FusedMatMul(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "fused matmul transB": ("com.microsoft.FusedMatMul<transB=1>(x, w)", (5, 4), Layout(0, 1), (4, 5)),
    "fused matmul left transA": ("com.microsoft.FusedMatMul<transA=1>(w, x)", (4, 5), Layout(1, 0), (5, 4)),
    "fused matmul 3-D": ("com.microsoft.FusedMatMul<transB=1>(x, w)", (2, 5, 4), Layout(1, 2), (2, 4, 5)),
    "transpose matmul": ("com.microsoft.TransposeMatMul<transB=1>(x, w)", (5, 4), Layout(0, 1), (4, 5)),
    "fused gemm": ("com.microsoft.FusedGemm<transB=1>(x, w)", (5, 4), Layout(0, 1), (4, 5)),
    "gemm fast gelu": ("com.microsoft.GemmFastGelu(x, w)", (4, 5), Layout(0, 1), (4, 5)),
    "attention": ("com.microsoft.Attention<num_heads=1>(x, w)", (4, 12), Layout(0, 1), (4, 12)),
    "fused conv": ("com.microsoft.FusedConv(x, w)", (6, 4, 3), Layout(1, 0, flatten=True), (6, 4, 3)),
    "words": ("com.microsoft.EmbedLayerNormalization(i, , w, p, , g, b)", (9, 4), Layout(1, 0), (9, 4)),
    "positions": ("com.microsoft.EmbedLayerNormalization(i, , t, w, , g, b)", (9, 4), Layout(1, 0), (9, 4)),
    "segments": ("com.microsoft.EmbedLayerNormalization(i, i, t, p, w, g, b)", (9, 4), Layout(1, 0), (9, 4)),
}
GRAPH = "g (float[..] x, int64[2] i, float[9,4] t, float[9,4] p, float[4] g, float[4] b) => (float[..] y) ".replace(
    "[..]", "[N,M]"
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_operator_and_layout(name: str) -> None:
    node, shape, layout, read = LAYOUTS[name]
    weight = weights(GRAPH + f"{{ [n] y = {node} }}", w=shape)["w"]
    assert weight.obstacle is None
    assert weight.layout == layout
    assert weight.shape == read
    assert weight.read().shape == read
    assert weight.op == node.split("(")[0].split("<")[0].replace("com.microsoft.", "com.microsoft::")
    assert weight.names == ("w", "n")
    assert weight.role == ("embedding" if "Gather" in node or "Embed" in node else "linear")
    if shape != read:
        assert weight.read()[..., 0, 1].flat[0] == np.arange(np.prod(shape)).reshape(shape)[..., 1, 0].flat[0]


def test_every_operator_of_the_table_has_a_row() -> None:
    tested = {node.split("(")[0].split("<")[0] for node, *_ in LAYOUTS.values()}
    assert tested == {f"{domain}.{op_type}" if domain else op_type for domain, op_type in WEIGHT_OPERANDS}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            "y = com.microsoft.MatMulNBits<K=4, N=4, bits=4, block_size=32>(x, t, w)",
            "a part of a weight that is quantized already",
        ),
        ("y = DequantizeLinear<block_size=4>(t, w)", "a part of a weight that is quantized already"),
        ("y = onnxq.MatMulFP6E2M3(x, t, w)", "a part of a weight that is quantized already"),
        ("y = onnxq.Hadamard(x, w, w)", "a rotation"),
        ("y = RotaryEmbedding(x, w, t, i)", "a table of rotary positions"),
        ("y = com.microsoft.RotaryEmbedding(x, i, t, w)", "a table of rotary positions"),
        ("c = Gather(w, i) y = RotaryEmbedding(x, c, t)", "a table of rotary positions"),
    ],
)
def test_a_constant_that_is_known_to_be_no_weight_says_what_it_is(nodes: str, reason: str) -> None:
    assert weights(GRAPH + f"{{ {nodes} }}", w=(4, 4))["w"].obstacle == reason


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("Conv(x, w)", (6, 4)),
        ("ConvTranspose(x, w)", (6, 4)),
        ("Gather<axis=1>(w, i)", (9, 4)),
        ("Gather(w, i)", (2, 9, 4)),
        ("GatherElements(w, i)", (9, 4)),
        ("Add(x, w)", (4, 5)),
        ("Conv(x, t, w)", (2, 2)),
        ("Gemm(x, t, w)", (9, 4)),
        ("LSTM<hidden_size=4>(x, w, w)", (1, 16, 4)),
        ('Einsum<equation="ab,bc->ac">(x, w)', (4, 5)),
        ("com.microsoft.FusedMatMul<transBatchB=1>(x, w)", (2, 4, 5)),
        ("com.microsoft.MatMul(x, w)", (4, 5)),
        ("com.microsoft.Gather(w, i)", (9, 4)),
        ("other.MatMul(x, w)", (4, 5)),
        ("other.Attention(x, w)", (4, 5)),
        ("Attention(x, w, w)", (4, 5)),
        ("FusedMatMul(x, w)", (4, 5)),
        ("FusedConv(x, w)", (4, 5, 3)),
    ],
)
def test_reader_that_sees_no_weight(node: str, shape: tuple[int, ...]) -> None:
    weight = weights(GRAPH + f"{{ [n] y = {node} }}", w=shape)["w"]
    operator = re.split("[(<]", node)[0].replace("com.microsoft.", "com.microsoft::").replace("other.", "other::")
    assert weight.obstacle == f"read by {operator}, not as a weight"
    assert weight.sites == ()
    assert weight.layout is None
    assert weight.op == operator


def test_long_name_of_the_domain_is_the_same_operator() -> None:
    assert obstacle(GRAPH + "{ [n] y = ai.onnx.MatMul(x, w) }", w=(4, 5)) is None


@pytest.mark.parametrize("shape", [(4,), ()])
def test_vectors_and_scalars_are_no_weights(shape: tuple[int, ...]) -> None:
    assert weights(GRAPH + "{ [n] y = MatMul(x, w) }", w=shape) == {}


def test_other_types_are_no_weights() -> None:
    assert weights(GRAPH + "{ [n] y = MatMulInteger(x, w) }", np.int8, w=(4, 5)) == {}


# name: (nodes around w, shape of w, shape as read, steps)
CHAINS = {
    "transpose": ("v = Transpose<perm=[1,0]>(w) y = MatMul(x, v)", (5, 4), (4, 5)),
    "transpose without perm": ("v = Transpose(w) y = MatMul(x, v)", (5, 4), (4, 5)),
    "transpose 3-D": ("v = Transpose<perm=[2,0,1]>(w) y = MatMul(x, v)", (4, 5, 2), (2, 4, 5)),
    "identities": ("u = Identity(w) v = Identity(u) y = MatMul(x, v)", (4, 5), (4, 5)),
    "reshape": ("c = Constant<value_ints=[4,5]>() v = Reshape(w, c) y = MatMul(x, v)", (2, 10), (4, 5)),
    "reshape with zero": ("v = Reshape(w, s) y = MatMul(x, v)", (4, 5, 1), (4, 5)),
    "squeeze": ("v = Squeeze(w, a) y = MatMul(x, v)", (1, 4, 5), (4, 5)),
    "unsqueeze": ("v = Unsqueeze(w, a) y = MatMul(x, v)", (4, 5), (1, 4, 5)),
    "transposed twice": ("u = Transpose(w) v = Transpose(u) y = MatMul(x, v)", (4, 5), (4, 5)),
    "transposed before gemm transB": ("v = Transpose(w) y = Gemm<transB=1>(x, v)", (4, 5), (4, 5)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_folded(name: str) -> None:
    nodes, shape, read = CHAINS[name]
    proto = parser.parse_model(HEADER + GRAPH + f"{{ {nodes} }}")
    array = np.random.default_rng(0).standard_normal(shape).astype(F32)
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), "s"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "a"))
    (weight,) = find_weights(ir.from_proto(proto))
    assert weight.obstacle is None
    assert weight.shape == read
    # What the nodes compute, by onnx.reference: up to the operand, or up to what Gemm makes of it.
    last = proto.graph.node[-1]
    del proto.graph.node[-1], proto.graph.output[:], proto.graph.input[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last.input[1], 1, None))
    computed = onnx.reference.ReferenceEvaluator(proto).run(None, {})[0]
    if last.op_type == "Gemm":
        computed = computed.T
    np.testing.assert_array_equal(weight.read(), computed)


def test_cast_changes_the_type_that_is_quantized() -> None:
    weight = weights(GRAPH + "{ v = Cast<to=1>(w) [n] y = MatMul(x, v) }", np.float16, w=(4, 5))["w"]
    assert weight.obstacle is None
    assert weight.dtype == ir.DataType.FLOAT
    assert weight.tensor.dtype == ir.DataType.FLOAT16
    assert weight.size_bytes == 40
    assert weight.read().dtype == np.float32


def test_constant_node_is_a_weight() -> None:
    text = GRAPH + "{ w = Constant<value = float[2,2] {1,2,3,4}>() v = Transpose(w) [n] y = MatMul(x, v) }"
    weight = weights(text)["w"]
    assert weight.obstacle is None
    np.testing.assert_array_equal(weight.read(), [[1, 3], [2, 4]])


OBSTACLES = {
    "nobody": ("y = Relu(x)", "nobody reads it"),
    "also by add": ("y = MatMul(x, w) [a] z = Add(y, w)", "also read by Add 'a'"),
    "also by relu behind a transpose": ("v = Transpose(w) y = MatMul(x, v) [r] z = Relu(v)", "also read by Relu 'r'"),
    "graph output": ("y = MatMul(x, w) z = Identity(w)", "also read by Identity ''"),
    "both factors": ("[n] y = MatMul(w, w)", "also read by MatMul 'n'"),
    "bias too": ("[n] y = Gemm(x, w, w)", "also read by Gemm 'n'"),
    "dynamic reshape": (
        "s = Shape(x) v = Reshape(w, s) y = MatMul(x, v)",
        "reshaped by something that is not constant",
    ),
    "squeeze of what is one": ("v = Squeeze(w) y = MatMul(x, v)", "reshaped by something that is not constant"),
    "cast to what is no float": ("v = Cast<to=6>(w) y = MatMul(x, v)", "reshaped by something that is not constant"),
    "other axes": ("a = MatMul(x, w) y = MatMul(w, a)", "its readers sum over different axes"),
    "table and product": ("e = Gather(w, i) y = MatMul(e, w)", "its readers sum over different axes"),
    "transposed and not": ("a = MatMul(x, w) v = Transpose(w) y = MatMul(a, v)", "its readers sum over different axes"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_obstacle_is_named(name: str) -> None:
    nodes, why = OBSTACLES[name]
    assert obstacle(GRAPH + f"{{ {nodes} }}", w=(4, 4)) == why


def test_float64_stays() -> None:
    assert obstacle(GRAPH + "{ y = MatMul(x, w) }", np.float64, w=(4, 4)) == "float64 weights stay as they are"


def test_graph_input_and_output_stay() -> None:
    text = "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
    assert obstacle(text, w=(4, 4)) == "also a graph input: a caller may replace it"
    text = "g (float[N,4] x) => (float[N,4] y, float[4,4] w) { y = MatMul(x, w) }"
    assert obstacle(text, w=(4, 4)) == "also a graph output"
    text = "g (float[N,4] x) => (float[N,4] y, float[4,4] v) { v = Transpose(w) y = MatMul(x, v) }"
    assert obstacle(text, w=(4, 4)) == "also a graph output"


def test_attribute_that_a_function_is_given_is_an_obstacle() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) { y = local.F<flag=1, order=[1,0]>(x) }
    <domain: "local", opset_import: ["": 21]> F <flag, order>(x) => (y)
    { w = Constant<value = float[2,2] {1,2,3,4}>() v = Constant<value = float[2,2] {1,2,3,4}>()
      a = Gemm<transB: int = @flag>(x, w) t = Transpose<perm: ints = @order>(v) y = MatMul(a, t) }"""
    found = weights(text)
    assert found["local::F/w"].obstacle
    assert found["local::F/v"].obstacle == "reshaped by something that is not constant"


TIED = {
    "products": ("a = MatMul(x, w) y = MatMul(a, w)", Layout(0, 1), (9, 9), "linear"),
    "product and gemm": ("a = MatMul(x, w) y = Gemm(a, w)", Layout(0, 1), (9, 9), "linear"),
    "embedding and transposed head": (
        "e = Gather(w, i) v = Transpose(w) y = MatMul(e, v)",
        Layout(1, 0),
        (9, 9),
        "embedding",
    ),
    "the head first": (
        "v = Transpose(w) a = MatMul(x, v) e = Gather(w, i) y = Add(a, e)",
        Layout(1, 0),
        (9, 9),
        "embedding",
    ),
    "embedding and gemm": ("e = Gather(w, i) y = Gemm<transB=1>(e, w)", Layout(1, 0), (9, 9), "embedding"),
    "gemm first": ("a = Gemm<transB=1>(x, w) e = Gather(w, i) y = Add(a, e)", Layout(1, 0), (9, 9), "embedding"),
    "behind a cast each": (
        "e = Gather(w, i) c = Cast<to=1>(w) v = Transpose(c) y = MatMul(e, v)",
        Layout(1, 0),
        (9, 9),
        "embedding",
    ),
    "behind the same transpose": (
        "v = Transpose(w) a = MatMul(x, v) y = MatMul(a, v)",
        Layout(0, 1),
        (9, 9),
        "linear",
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_tied_weight_stays_tied(name: str) -> None:
    nodes, layout, shape, role = TIED[name]
    weight = weights(GRAPH + f"{{ {nodes} }}", w=(9, 9))["w"]
    assert weight.obstacle is None
    assert weight.layout == layout
    assert weight.shape == shape
    assert weight.role == role
    assert len(weight.sites) == 2


SUBGRAPHS = """
g (float[N,4] x, bool c) => (float[N,4] y) {
  [if] z = If(c) <
    then_branch = then () => (u) <float[2,2] own = {1,2,3,4}> { [a] p = MatMul(x, outer) [b] u = MatMul(p, own) },
    else_branch = else () => (v) { [k] k = Constant<value = float[2,2] {1,2,3,4}>() [m] v = MatMul(x, outer) }>
  [loop] l = Loop(n, , z) <
    body = body (int64 i, bool d, h) => (e, o) { [e] e = Identity(d) [q] o = MatMul(h, inner) }>
  [f] y = local.F(l)
}
<domain: "local", opset_import: ["": 21]> F (x) => (y)
{ [w] w = Constant<value = float[2,2] {1,2,3,4}>() [r] y = MatMul(x, w) }
"""


def test_subgraphs_and_functions_are_searched() -> None:
    found = weights(SUBGRAPHS, outer=(4, 4), inner=(4, 4))
    assert {name: [site.node.name for site in weight.sites] for name, weight in found.items()} == {
        "outer": ["a", "m"],
        "inner": ["q"],
        "own": ["b"],
        "k": [],
        "local::F/w": ["r"],
    }
    assert found["k"].obstacle == "nobody reads it"
    assert all(weight.obstacle is None for name, weight in found.items() if name != "k")
    assert [name for name, weight in found.items() if weight.in_function] == ["local::F/w"]


def test_output_of_a_subgraph_is_an_obstacle() -> None:
    text = """g (float[N,4] x, bool c) => (float[4,4] y) { y = If(c) <
    then_branch = then () => (w) <float[2,2] w = {1,2,3,4}> { [a] p = MatMul(x, w) },
    else_branch = else () => (v) { [m] v = Relu(x) }> }"""
    assert obstacle(text) == "also a graph output"


ROLES = {
    # The second product gives one number a token of the table, right before the output.
    "head": ("e = Gather(t, i) a = MatMul(e, u) y = MatMul(a, w)", "head"),
    "through what follows": ("e = Gather(t, i) a = MatMul(e, w) b = Mul(a, x) c = Tanh(b) y = Cast<to=1>(c)", "head"),
    "not at the end": ("e = Gather(t, i) a = MatMul(e, w) y = Softmax(a)", "linear"),
    "no table": ("y = MatMul(x, w)", "linear"),
}


@pytest.mark.parametrize("name", ROLES)
def test_role(name: str) -> None:
    nodes, role = ROLES[name]
    text = f"g (float[N,9] x, int64[2] i) => (float[N,9] y) {{ {nodes} }}"
    assert weights(text, w=(4, 9), t=(9, 4), u=(4, 4))["w"].role == role


def test_order_and_count_are_those_of_the_model() -> None:
    text = (
        GRAPH
        + "{ a = MatMul(x, c) k = Constant<value=float[1,1]{1.0}>() d = Add(a, k) e = Add(d, b2) y = MatMul(e, a2) }"
    )
    assert list(weights(text, b2=(4, 4), a2=(4, 4), c=(4, 4))) == ["b2", "a2", "c", "k"]
