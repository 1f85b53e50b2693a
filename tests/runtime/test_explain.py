"""What `execution` tells from the graph is what stands in the model that onnxruntime makes of it."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.analysis.execution import Execution, FusedMatMuls, execution
from onnxq.model.load import from_proto
from onnxq.runtime.native import rounds_activations

RNG = np.random.default_rng(0)

# The usual case, of which each row below changes one thing: blocks of 32 along K of a [K, N] weight.
WEIGHT = {"w": ("int4", (64, 32)), "s": ("float32", (2, 32))}
BLOCKED = "d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s)"
GRAPH = "g (float[B,64] x) => (float[B,N] y) {{ {} }}"


def array(dtype, shape):
    if dtype in ("float32", "float16"):
        return RNG.uniform(0.01, 0.02, shape).astype(dtype)
    return RNG.integers(0, 2, shape).astype(getattr(ml_dtypes, dtype, None) or dtype)


def arrays(**kinds):
    return {name: array(*kind) for name, kind in (WEIGHT | kinds).items()}


def graph(*nodes):
    return GRAPH.format(" ".join(nodes))


MATMUL = "y = MatMul(x, d)"
CASES = {
    # name: (text, arrays, (bits, matmuls that fuse))
    "int4 in blocks": (graph(BLOCKED, MATMUL), {}, (4, 1)),
    "uint4": (graph(BLOCKED, MATMUL), {"w": ("uint4", (64, 32))}, (4, 1)),
    "int2": (graph(BLOCKED, MATMUL), {"w": ("int2", (64, 32))}, (2, 1)),
    "int8": (graph(BLOCKED, MATMUL), {"w": ("int8", (64, 32))}, (8, 1)),
    "uint8": (graph(BLOCKED, MATMUL), {"w": ("uint8", (64, 32))}, (8, 1)),
    "int16 does not fuse": (graph(BLOCKED, MATMUL), {"w": ("int16", (64, 32))}, (0, 0)),
    "zero points": (
        graph("d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s, z)", MATMUL),
        {"z": ("int4", (2, 32))},
        (4, 1),
    ),
    "blocks of 16": (
        graph("d = DequantizeLinear <axis: int = 0, block_size: int = 16> (w, s)", MATMUL),
        {"s": ("float32", (4, 32))},
        (4, 1),
    ),
    "blocks of 8 do not fuse": (
        graph("d = DequantizeLinear <axis: int = 0, block_size: int = 8> (w, s)", MATMUL),
        {"s": ("float32", (8, 32))},
        (0, 0),
    ),
    "blocks along N do not fuse": (
        graph("d = DequantizeLinear <axis: int = 1, block_size: int = 32> (w, s)", MATMUL),
        {"s": ("float32", (64, 1))},
        (0, 0),
    ),
    "a negative axis does not fuse": (
        graph("d = DequantizeLinear <axis: int = -2, block_size: int = 32> (w, s)", MATMUL),
        {},
        (0, 0),
    ),
    "a scale a column": (graph("d = DequantizeLinear(w, s)", MATMUL), {"s": ("float32", (32,))}, (4, 1)),
    "a scale a row does not fuse": (
        graph("d = DequantizeLinear <axis: int = 0> (w, s)", MATMUL),
        {"s": ("float32", (64,))},
        (0, 0),
    ),
    "one scale": (graph("d = DequantizeLinear(w, s)", MATMUL), {"s": ("float32", ())}, (4, 1)),
    "through Identity": (graph(BLOCKED, "e = Identity(d)", "y = MatMul(x, e)"), {}, (4, 1)),
    "behind Transpose does not fuse": (
        graph(
            "d = DequantizeLinear <axis: int = 1, block_size: int = 32> (w, s)", "e = Transpose(d)", "y = MatMul(x, e)"
        ),
        {"w": ("int4", (32, 64)), "s": ("float32", (32, 2))},
        (0, 0),
    ),
    "on the left does not fuse": (
        graph(BLOCKED, "y = MatMul(d, x)"),
        {"w": ("int4", (64, 64)), "s": ("float32", (2, 64))},
        (0, 0),
    ),
    "a matmul before an Add": (graph(BLOCKED, "h = MatMul(x, d)", "y = Add(h, b)"), {"b": ("float32", (32,))}, (4, 1)),
    "a matmul before an Add of a row does not fuse": (
        graph(BLOCKED, "h = MatMul(x, d)", "y = Add(h, b)"),
        {"b": ("float32", (1, 32))},
        (0, 0),
    ),
    "a matmul before an Add of a matrix does not fuse": (
        f"g (float[B,64] x, float[B,32] b) => (float[B,N] y) {{ {BLOCKED} h = MatMul(x, d) y = Add(h, b) }}",
        {},
        (0, 0),
    ),
    "a matmul of three dimensions before an Add": (
        f"g (float[A,B,64] x, float[A,B,32] b) => (float[A,B,N] y) {{ {BLOCKED} h = MatMul(x, d) y = Add(h, b) }}",
        {},
        (4, 1),
    ),
    "a Relu that one node reads does not fuse": (
        graph(BLOCKED, "h = MatMul(x, d)", "r = Relu(h)", "y = Neg(r)"),
        {},
        (0, 0),
    ),
    "a Clip that one node reads does not fuse": (
        graph(BLOCKED, "h = Gemm(x, d)", "r = Clip(h, c)", "y = Neg(r)"),
        {"c": ("float32", ())},
        (0, 0),
    ),
    "a Relu behind a bias does not fuse": (
        graph(BLOCKED, "h = MatMul(x, d)", "a = Add(h, b)", "r = Relu(a)", "y = Neg(r)"),
        {"b": ("float32", (32,))},
        (0, 0),
    ),
    "a Relu behind a bias of more than a matrix": (
        graph(BLOCKED, "h = MatMul(x, d)", "a = Add(h, b)", "r = Relu(a)", "y = Neg(r)").replace("B,", "A,B,"),
        {"b": ("float32", (32,))},
        (4, 1),
    ),
    "a Relu that two nodes read": (
        graph(BLOCKED, "h = MatMul(x, d)", "r = Relu(h)", "n = Neg(r)", "y = Mul(r, n)"),
        {},
        (4, 1),
    ),
    "a Relu that is the result": (graph(BLOCKED, "h = MatMul(x, d)", "y = Relu(h)"), {}, (4, 1)),
    "Gemm": (graph(BLOCKED, "y = Gemm(x, d, b)"), {"b": ("float32", (32,))}, (4, 1)),
    "Gemm with a row as bias does not fuse": (graph(BLOCKED, "y = Gemm(x, d, b)"), {"b": ("float32", (1, 32))}, (0, 0)),
    "Gemm with transB does not fuse": (
        graph("d = DequantizeLinear <axis: int = 1, block_size: int = 32> (w, s)", "y = Gemm <transB: int = 1> (x, d)"),
        {"w": ("int4", (32, 64)), "s": ("float32", (32, 2))},
        (0, 0),
    ),
    "Gemm with alpha does not fuse": (graph(BLOCKED, "y = Gemm <alpha: float = 2.0> (x, d)"), {}, (0, 0)),
    "Gemm with beta but no bias": (graph(BLOCKED, "y = Gemm <beta: float = 0.5> (x, d)"), {}, (4, 1)),
    "two readers of one DequantizeLinear do not fuse": (
        graph(BLOCKED, "h = MatMul(x, d)", "r = Relu(x)", "i = MatMul(r, d)", "y = Add(h, i)"),
        {},
        (0, 0),
    ),
    "two DequantizeLinear of one weight do not fuse": (
        graph(
            BLOCKED,
            BLOCKED.replace("d =", "e =").replace("s)", "t)"),
            "h = MatMul(x, d)",
            "i = MatMul(x, e)",
            "y = Add(h, i)",
        ),
        {"t": ("float32", (2, 32))},
        (0, 0),
    ),
    "two weights with one scale do not fuse": (
        graph(
            BLOCKED,
            BLOCKED.replace("d =", "e =").replace("w,", "v,"),
            "h = MatMul(x, d)",
            "i = MatMul(x, e)",
            "y = Add(h, i)",
        ),
        {"v": ("int4", (64, 32))},
        (0, 0),
    ),
    "two weights with one zero point": (
        graph(
            "d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s, z)",
            "e = DequantizeLinear <axis: int = 0, block_size: int = 32> (v, t, z)",
            "h = MatMul(x, d)",
            "i = MatMul(x, e)",
            "y = Mul(h, i)",
        ),
        {"v": ("int4", (64, 32)), "t": ("float32", (2, 32)), "z": ("int4", (2, 32))},
        (4, 2),
    ),
    "a DequantizeLinear that is an output does not fuse": (
        f"g (float[B,64] x) => (float[B,N] y, float[64,32] d) {{ {BLOCKED} {MATMUL} }}",
        {},
        (0, 0),
    ),
    "a quantized activation does not fuse at 4 bits": (
        graph("q = QuantizeLinear(x, c, p)", "a = DequantizeLinear(q, c, p)", BLOCKED, "y = MatMul(a, d)"),
        {"c": ("float32", ()), "p": ("uint8", ())},
        (0, 0),
    ),
    "a quantized result does not fuse": (
        graph(BLOCKED, "h = MatMul(x, d)", "q = QuantizeLinear(h, c, p)", "y = DequantizeLinear(q, c, p)"),
        {"c": ("float32", ()), "p": ("uint8", ())},
        (0, 0),
    ),
    "float16": (
        f"g (float16[B,64] x) => (float16[B,N] y) {{ {BLOCKED} {MATMUL} }}",
        {"s": ("float16", (2, 32))},
        (4, 1),
    ),
    "a weight of three dimensions does not fuse": (
        f"g (float[2,B,64] x) => (float[2,B,N] y) {{ {BLOCKED.replace('axis: int = 0', 'axis: int = 1')} {MATMUL} }}",
        {"w": ("int4", (2, 64, 32)), "s": ("float32", (2, 2, 32))},
        (0, 0),
    ),
    "a weight that is a graph input too does not fuse": (
        f"g (float[B,64] x, int4[64,32] w) => (float[B,N] y) {{ {BLOCKED} {MATMUL} }}",
        {},
        (0, 0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_fusions_are_onnxruntimes(name, model_of, optimized):
    text, changed, (bits, count) = CASES[name]
    model = model_of(text, **arrays(**changed))
    predicted = {(kind.bits, kind.accuracy_level): kind.count for kind in execution(from_proto(model)).fused}
    assert predicted == optimized(model)[1]
    assert predicted == ({(bits, 4): count} if count else {})


@pytest.mark.parametrize("level", [0, 1, 4])
def test_fused_matmuls_run_at_the_level_of_the_session(level, model_of, optimized):
    model = model_of(graph(BLOCKED, MATMUL), **arrays())
    told = execution(from_proto(model), accuracy_level=level)
    assert told.fused == (FusedMatMuls(4, level, 1),)
    assert optimized(model, level)[1] == {(4, level): 1}
    assert told.rounds_activations == (level == 4)


def test_a_matmulnbits_in_the_file_keeps_its_own_level(model_of, optimized):
    node = "y = com.microsoft.MatMulNBits <K: int = 64, N: int = 32, bits: int = 8, block_size: int = 32, {}> (x, w, s)"
    weights = {"w": array("uint8", (32, 2, 32)), "s": array("float32", (32, 2))}
    for attribute, level in (("accuracy_level: int = 4", 4), ("accuracy_level: int = 0", 0)):
        model = model_of(graph(node.format(attribute)), **weights)
        told = execution(from_proto(model), accuracy_level=1)
        assert told.fused == (FusedMatMuls(8, level, 1),)
        assert optimized(model, 1)[1] == {(8, level): 1}


def test_functions_of_other_domains_are_written_out_before_counting(model_of, optimized):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "mine": 1]>
        g (float[B,64] x) => (float[B,32] y) { y = mine.Linear(x, w, s) }
        <domain: "mine", opset_import: ["": 25]>
        Linear (x, w, s) => (y) {
            d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s)
            y = MatMul(x, d)
        }""",
        **arrays(),
    )
    loaded = from_proto(model)
    assert execution(loaded).fused == (FusedMatMuls(4, 4, 1),)
    assert optimized(model)[1] == {(4, 4): 1}
    assert [node.op_type for node in loaded.ir.graph] == ["Linear"], "the model itself is not changed"


def test_a_weight_within_a_subgraph_fuses_there(model_of, optimized):
    model = model_of(
        """g (float[B,64] x, bool c) => (float[B,N] y) {
            y = If (c) <
                then_branch = t () => (float[B,N] a) { a = Relu(x) },
                else_branch = e () => (float[B,N] b)
                    { d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s) b = MatMul(x, d) }
            >
        }"""
    )
    inner = model.graph.node[0].attribute[1].g
    inner.initializer.extend(
        onnx.numpy_helper.from_array(each, name)
        for name, each in arrays(w=("int4", (64, 64)), s=("float32", (2, 64))).items()
    )
    assert execution(from_proto(model)).fused == (FusedMatMuls(4, 4, 1),)
    assert optimized(model)[1] == {(4, 4): 1}


def test_onnxq_functions_are_counted_and_onnxruntime_folds_them_to_float(model_of, optimized):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "onnxq": 1]>
        g (float[B,64] x) => (float[B,32] y) { y = onnxq.MatMulFP6E3M2(x, w, s) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP6E3M2 (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }""",
        w=array("uint8", (64, 32)),
        s=array("float32", (32,)),
    )
    told = execution(from_proto(model), native=False)
    assert told == Execution(functions={"MatMulFP6E3M2": 1})
    assert optimized(model)[0] == {"MatMul": 1}


def test_operators_that_the_library_has_are_native_and_others_stay_functions(model_of, monkeypatch, tmp_path):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "onnxq": 1]>
        g (float[B,64] x) => (float[B,32] z) { d = onnxq.DequantizeFP6E3M2(w, s) y = MatMul(x, d)
            z = onnxq.MatMulFP6E3M2(y, w, s) }
        <domain: "onnxq", opset_import: ["": 25]>
        DequantizeFP6E3M2 (w, s) => (d) { f = CastLike(w, s) d = Mul(f, s) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP6E3M2 (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }""",
        w=array("uint8", (64, 32)),
        s=array("float32", (32,)),
    )
    told = execution(from_proto(model))
    assert (told.native, told.functions) == ({"MatMulFP6E3M2": 1}, {"DequantizeFP6E3M2": 1})
    assert told.sentences()[0] == "1 onnxq MatMulFP6E3M2 in a native kernel, on packed weights"
    monkeypatch.setenv("ONNXQ_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    told = execution(from_proto(model))
    assert (told.native, told.functions) == ({}, {"DequantizeFP6E3M2": 1, "MatMulFP6E3M2": 1})


def test_native_products_round_activations_at_level_4_where_the_cpu_can(model_of):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "onnxq": 1]>
        g (float[B,64] x) => (float[B,32] z) {
            y = onnxq.MatMulFP6E2M3 <shape: ints = [64, 64], block_size: int = 32> (x, w, s)
            z = onnxq.MatMulFP6E2M3 <shape: ints = [64, 32], block_size: int = 48> (y, w, s) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP6E2M3 (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }""",
        w=array("uint8", (64, 32)),
        s=array("float32", (32,)),
    )
    one = {"MatMulFP6E2M3": 1} if rounds_activations("MatMulFP6E2M3", 64, 32) else {}
    for level, expected in ((None, {}), (0, {}), (1, {}), (4, one)):
        told = execution(from_proto(model), accuracy_level=level)
        assert told.native == {"MatMulFP6E2M3": 2}
        assert told.native_int8 == expected
        assert told.rounds_activations == bool(expected)
    if one:
        line = "2 onnxq MatMulFP6E2M3 in a native kernel, on packed weights (1 with activations rounded to int8)"
        assert told.sentences() == [line]


def test_on_cuda_weights_in_tiles_are_native_where_a_gpu_has_kernels(model_of, monkeypatch):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "onnxq": 1]>
        g (float[B,64] x) => (float[B,32] y, float[B,32] z) {
            y = onnxq.MatMulFP6E3M2Tiled(x, w, s) z = onnxq.MatMulFP6E3M2(x, w, s) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP6E3M2Tiled (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP6E3M2 (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }""",
        w=array("uint8", (64, 32)),
        s=array("float32", (32,)),
    )
    for problem, native in ((None, {"MatMulFP6E3M2Tiled"}), ("CUDA finds no GPU here", set())):
        monkeypatch.setattr("onnxq.runtime.cuda.device.problem", lambda problem=problem: problem)
        told = execution(from_proto(model), cuda=True)
        assert (set(told.native), len(told.functions)) == (native, 2 - len(native))
    assert set(execution(from_proto(model)).native) == {"MatMulFP6E3M2"}


def test_an_operator_that_only_makes_scales_for_another_is_not_counted(model_of):
    model = model_of(
        """<ir_version: 13, opset_import: ["": 25, "onnxq": 1]>
        g (float[B,64] x) => (float[B,32] y) { t = onnxq.ScaleE4M3(s) y = onnxq.MatMulFP4E2M1(x, w, t) }
        <domain: "onnxq", opset_import: ["": 25]>
        ScaleE4M3 (s) => (t) { t = Identity(s) }
        <domain: "onnxq", opset_import: ["": 25]>
        MatMulFP4E2M1 (x, w, s) => (y) { f = CastLike(w, s) d = Mul(f, s) y = MatMul(x, d) }""",
        w=array("uint8", (64, 32)),
        s=array("float32", (32,)),
    )
    assert execution(from_proto(model), native=False).functions == {"MatMulFP4E2M1": 1}
    assert execution(from_proto(model)).native == {"MatMulFP4E2M1": 1}


@pytest.mark.parametrize(
    ("nodes", "changed", "told", "made"),
    [
        pytest.param("y = MatMul(x, f)", {"f": ("float32", (64, 32))}, Execution(plain=1), "MatMul", id="float"),
        pytest.param(
            "y = Gemm <transB: int = 1> (x, f)", {"f": ("float32", (32, 64))}, Execution(plain=1), "Gemm", id="Gemm"
        ),
        pytest.param("t = Transpose(x) y = MatMul(x, t)", {}, Execution(), "FusedMatMul", id="no weight"),
        pytest.param(
            "n = Gather(f, i) y = MatMul(x, n)",
            {"f": ("float32", (64, 64)), "i": ("int64", (64,))},
            Execution(),
            "MatMul",
            id="table",
        ),
        pytest.param(
            "d = DequantizeLinear(w, s) y = Add(x, d)",
            {"w": ("int8", (1, 64)), "s": ("float32", ())},
            Execution(dequantized=1),
            "DequantizeLinear",
            id="dequantized for an Add",
        ),
        pytest.param(
            f"{BLOCKED} t = Transpose(d) y = MatMul(x, t)",
            {"w": ("int4", (32, 64)), "s": ("float32", (1, 64))},
            Execution(dequantized=1),
            "DequantizeLinear",
            id="dequantized for a matmul",
        ),
        pytest.param(
            "q = QuantizeLinear(x, c, p) a = DequantizeLinear(q, c, p) d = DequantizeLinear(w, s) y = MatMul(a, d)",
            {"w": ("int8", (64, 32)), "s": ("float32", ()), "c": ("float32", ()), "p": ("uint8", ())},
            Execution(integer=1),
            "MatMulIntegerToFloat",
            id="integer matmul",
        ),
    ],
)
def test_what_is_not_fused_is_counted_by_how_it_runs(nodes, changed, told, made, model_of, optimized):
    used = {name: array(*kind) for name, kind in (WEIGHT | changed).items() if name in changed or "w" in changed}
    model = model_of(graph(nodes), **used)
    assert execution(from_proto(model)) == told
    assert optimized(model)[0][made] == 1


def test_a_quantized_convolution_is_integer_only_if_its_result_is_quantized_too(model_of, optimized):
    head = "q = QuantizeLinear(x, c, p) a = DequantizeLinear(q, c, p) d = DequantizeLinear(w, s) "
    text = "g (float[B,4,8,8] x) => (float[B,4,6,6] y) {{ {} }}"
    weights = {
        "w": array("int8", (4, 4, 3, 3)),
        "s": array("float32", ()),
        "c": array("float32", ()),
        "p": array("uint8", ()),
    }
    for tail, told, made in (
        (
            "h = Conv(a, d) r = QuantizeLinear(h, c, p) y = DequantizeLinear(r, c, p)",
            Execution(integer=1),
            "QLinearConv",
        ),
        ("y = Conv(a, d)", Execution(dequantized=1), "Conv"),
    ):
        model = model_of(text.format(head + tail), **weights)
        assert execution(from_proto(model)) == told
        assert optimized(model)[0][made] == 1


def test_sentences_and_dict_say_the_same(model_of):
    told = execution(from_proto(model_of(graph(BLOCKED, MATMUL), **arrays())))
    assert told.sentences() == ["1 fused 4-bit matmul at accuracy level 4 (activations rounded to int8)"]
    assert told.to_dict() == {
        "fused": [{"bits": 4, "accuracy_level": 4, "count": 1}],
        "native": {},
        "native_int8": {},
        "functions": {},
        "rounded": 0,
        "rotated": 0,
        "cached": 0,
        "looked_up": 0,
        "dequantized": 0,
        "integer": 0,
        "plain": 0,
    }


def test_a_function_of_another_opset_is_read_as_onnxruntime_reads_it() -> None:
    text = """<ir_version: 10, opset_import: ["": 22, "local": 1]>
    g (float[m, 64] x) => (float[m, 64] y) { y = local.F(x) }
    <domain: "local", opset_import: ["": 21]>
    F (x) => (y) { w = Constant <value_float: float = 2.0> ()  y = Mul(x, w) }"""
    assert execution(from_proto(onnx.parser.parse_model(text))).plain == 0
