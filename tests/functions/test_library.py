"""onnxq's operators mean what their documentation says, in every opset that a model may have."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.formats import LEARNED_FORMATS, NAMED_FORMATS, Integer, Minifloat, get_format, get_scale_type, pack
from onnxq.formats.sparse import pack_sparse, unpack_sparse
from onnxq.formats.tiled import TILED_FORMATS, TILED_VERSION, pack_tiled
from onnxq.functions import DOMAIN, VERSION, functions, operator_suffix

FORMATS = [*NAMED_FORMATS, "fp3_e1m1", "fp3_e2m0", "fp5_e3m1", "fp7_e3m3", "fp8_e7m0", "fp2_e1m0"]
SUFFIXES = {
    "fp6_e2m3": "FP6E2M3",
    "fp4_e2m1": "FP4E2M1",
    "fp8_e7m0": "FP8E7M0",
    "int3": "INT3",
    "uint4": "UINT4",
    "nf4": "NF4",
}


def model_of(node: onnx.NodeProto, opset: int, rank: int, **arrays: np.ndarray) -> onnx.ModelProto:
    """One onnxq node over these inputs, which are initializers."""
    dtype = next((each.i for each in node.attribute if each.name == "dtype"), onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "g",
        [],
        [helper.make_tensor_value_info("y", dtype, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[ir.serde.serialize_function(each) for each in functions([node.op_type], opset)],
    )
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def codes_of(kind, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Every code, in any order, but for those that mean no number."""
    valid = np.flatnonzero(np.isfinite(kind.values)).astype(np.uint8)
    return np.resize(np.random.default_rng(seed).permutation(valid), shape)


@pytest.mark.parametrize("opset", [13, 18, 26])
@pytest.mark.parametrize("name", FORMATS)
def test_dequantize(name: str, opset: int) -> None:
    kind = get_format(name)
    # Counts of codes that do not fill bytes, groups that do not divide the axis, on each axis.
    for shape, axis, block in (((7, 5), 0, 3), ((3, 5, 7), 1, 2), ((2, 3, 11), 2, 4), ((1, 1), 0, 32), ((13,), 0, 13)):
        codes = codes_of(kind, shape)
        groups = [-(-dim // block) if at == axis else dim for at, dim in enumerate(shape)]
        scale = np.random.default_rng(1).uniform(0.5, 2, groups).astype(np.float32)
        node = helper.make_node(
            f"Dequantize{operator_suffix(kind)}",
            ["p", "s"],
            ["y"],
            domain=DOMAIN,
            shape=list(shape),
            axis=axis,
            block_size=block,
            dtype=onnx.TensorProto.FLOAT,
        )
        model = model_of(node, opset, len(shape), p=pack(codes, kind.bits), s=scale)
        expected = kind.values[codes] * np.take(scale, np.arange(shape[axis]) // block, axis=axis)
        np.testing.assert_array_equal(run(model), expected)
        if opset == 13:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)


@pytest.mark.parametrize("name", [name for name, each in NAMED_FORMATS.items() if isinstance(each, Integer)])
def test_dequantize_with_zero_points(name: str) -> None:
    kind, shape, block = get_format(name), (11, 3), 4
    codes, zeros = codes_of(kind, shape), codes_of(kind, (3, 3), seed=1)
    scale = np.random.default_rng(1).uniform(0.5, 2, (3, 3)).astype(np.float16)
    node = helper.make_node(
        f"Dequantize{operator_suffix(kind)}Asymmetric",
        ["p", "s", "z"],
        ["y"],
        domain=DOMAIN,
        shape=list(shape),
        axis=0,
        block_size=block,
        dtype=onnx.TensorProto.FLOAT,
    )
    model = model_of(node, 13, 2, p=pack(codes, kind.bits), s=scale, z=pack(zeros, kind.bits))
    rows = np.arange(11) // block
    expected = (kind.values[codes] - kind.values[zeros][rows]) * scale.astype(np.float32)[rows]
    np.testing.assert_array_equal(run(model), expected)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)


@pytest.mark.parametrize("opset", [13, 18, 26])
@pytest.mark.parametrize("name", LEARNED_FORMATS)
def test_dequantize_with_a_table(name: str, opset: int) -> None:
    kind, rng = LEARNED_FORMATS[name], np.random.default_rng(0)
    table = np.sort(rng.standard_normal(2**kind.bits)).astype(np.float32)
    for shape, axis, block in (((7, 5), 0, 3), ((2, 3, 11), 2, 4), ((1, 1), 0, 32)):
        codes = codes_of(kind, shape)
        groups = [-(-dim // block) if at == axis else dim for at, dim in enumerate(shape)]
        scale = rng.uniform(0.5, 2, groups).astype(np.float16)
        node = helper.make_node(
            f"Dequantize{operator_suffix(kind)}",
            ["p", "s", "t"],
            ["y"],
            domain=DOMAIN,
            shape=list(shape),
            axis=axis,
            block_size=block,
            dtype=onnx.TensorProto.FLOAT,
        )
        model = model_of(node, opset, len(shape), p=pack(codes, kind.bits), s=scale, t=table)
        expected = table[codes] * np.take(scale.astype(np.float32), np.arange(shape[axis]) // block, axis=axis)
        np.testing.assert_array_equal(run(model), expected)
        if opset == 13:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matmul(dtype: type, asymmetric: bool) -> None:
    kind, rng = get_format("int3"), np.random.default_rng(0)
    codes, zeros = codes_of(kind, (10, 6)), codes_of(kind, (3, 6), seed=1)
    scale, x = rng.uniform(0.5, 2, (3, 6)).astype(dtype), rng.standard_normal((2, 4, 10)).astype(dtype)
    given = {"x": x, "p": pack(codes, 3), "s": scale} | ({"z": pack(zeros, 3)} if asymmetric else {})
    node = helper.make_node(
        "MatMulINT3" + ("Asymmetric" if asymmetric else ""),
        list(given),
        ["y"],
        domain=DOMAIN,
        shape=[10, 6],
        block_size=4,
        dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )
    units = kind.values[codes] - (kind.values[zeros][np.arange(10) // 4] if asymmetric else 0)
    weight = (units * scale.astype(np.float32)[np.arange(10) // 4]).astype(dtype)
    found = run(model_of(node, 13, 3, **given))
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(
        found, x.astype(np.float32) @ weight.astype(np.float32), rtol=tolerance, atol=50 * tolerance
    )


@pytest.mark.parametrize("opset", [13, 26])
@pytest.mark.parametrize(
    ("name", "asymmetric"), [*((name, False) for name in TILED_FORMATS), ("int4", True), ("uint4", True)]
)
def test_matmul_of_a_weight_in_tiles(name: str, asymmetric: bool, opset: int) -> None:
    kind, rng, (K, N) = get_format(name), np.random.default_rng(0), (384, 48)
    codes, zeros = codes_of(kind, (K, N)), codes_of(kind, (2, N), seed=1)
    scale = rng.uniform(0.5, 2, (2, N)).astype(np.float32)
    x = np.eye(K, dtype=np.float32)
    given = {"x": x, "p": pack_tiled(codes, kind), "s": scale} | ({"z": zeros} if asymmetric else {})
    node = helper.make_node(
        f"MatMul{operator_suffix(kind)}Tiled" + ("Asymmetric" if asymmetric else ""),
        list(given),
        ["y"],
        domain=DOMAIN,
        shape=[K, N],
        block_size=256,
        dtype=onnx.TensorProto.FLOAT,
        layout=TILED_VERSION,
    )
    model, rows = model_of(node, opset, 2, **given), np.arange(K) // 256
    expected = (kind.values[codes] - (kind.values[zeros][rows] if asymmetric else 0)) * scale[rows]
    np.testing.assert_array_equal(run(model), expected)
    if opset == 13:
        np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)
    bias = rng.standard_normal(N).astype(np.float32)
    node.op_type = node.op_type.replace("MatMul", "Linear")
    node.input.append("b")
    np.testing.assert_array_equal(run(model_of(node, opset, 2, **given, b=bias)), expected + bias)


@pytest.mark.parametrize("opset", [13, 26])
@pytest.mark.parametrize(
    ("name", "asymmetric"), [*((name, False) for name in TILED_FORMATS), ("int4", True), ("uint4", True)]
)
def test_columns_of_a_weight_in_tiles_are_looked_up(name: str, asymmetric: bool, opset: int) -> None:
    kind, rng, (K, N, filled) = get_format(name), np.random.default_rng(0), (192, 41, 48)
    codes, zeros = codes_of(kind, (256, filled)), codes_of(kind, (2, filled), seed=1)
    scale = rng.uniform(0.5, 2, (2, filled)).astype(np.float16)
    rows = np.arange(K) // 128
    values = kind.values[codes[:K]] - (kind.values[zeros][rows] if asymmetric else 0)
    columns = (values * scale.astype(np.float32)[rows]).astype(np.float16).T[:N]
    node = helper.make_node(
        f"Gather{operator_suffix(kind)}Tiled" + ("Asymmetric" if asymmetric else ""),
        ["p", "s", *(["z"] if asymmetric else []), "i"],
        ["y"],
        domain=DOMAIN,
        shape=[K, N],
        block_size=128,
        dtype=onnx.TensorProto.FLOAT16,
        layout=TILED_VERSION,
    )
    given = {"p": pack_tiled(codes, kind), "s": scale} | ({"z": zeros} if asymmetric else {})
    for indices in (np.arange(N), np.int32([[0, 40, 0], [-1, -41, 17]]), np.array(16), np.zeros((0, 2), np.int64)):
        model = model_of(node, opset, indices.ndim + 1, **given, i=indices)
        np.testing.assert_array_equal(run(model), columns[indices])
        if opset == 13:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], columns[indices])


@pytest.mark.parametrize(("name", "dtype"), [("e8m0", ml_dtypes.float8_e8m0fnu), ("e4m3", ml_dtypes.float8_e4m3fn)])
def test_scales_of_one_byte(name: str, dtype: type) -> None:
    codes = np.arange(1, 127, dtype=np.uint8).reshape(7, 18)
    node = helper.make_node(f"Scale{name.upper()}", ["c", "t"], ["y"], domain=DOMAIN)
    model = model_of(node, 13, 2, c=codes, t=np.float32(0.25).reshape(()))
    expected = codes.view(dtype).astype(np.float32) * np.float32(0.25)
    assert get_scale_type(name).dtype == dtype
    np.testing.assert_array_equal(run(model), expected)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)


@pytest.mark.parametrize("name", SUFFIXES)
def test_suffix(name: str) -> None:
    assert operator_suffix(get_format(name)) == SUFFIXES[name]


def test_suffixes_differ() -> None:
    kinds = [Minifloat(e, m) for e in range(1, 8) for m in range(8 - e)] + list(NAMED_FORMATS.values())
    assert len({operator_suffix(kind) for kind in kinds}) == len({kind.name for kind in kinds})


def test_callees_come_first_and_once() -> None:
    asked = ["MatMulFP6E2M3", "DequantizeFP6E3M2", "MatMulINT3Asymmetric", "ScaleE8M0", "DequantizeFP6E2M3"]
    made = functions(asked, 21)
    names = [each.name for each in made]
    assert len(names) == len(set(names))
    assert set(names) == {*asked, "Unpack6", "Unpack3", "DequantizeINT3Asymmetric"}
    for position, function in enumerate(made):
        assert {node.op_type for node in function if node.domain == DOMAIN} <= set(names[:position])
        assert function.opset_imports[""] == 21
    assert [each.name for each in functions(reversed(asked), 21)] == names
    assert functions([], 21) == []


@pytest.mark.parametrize(
    "name",
    ["Nothing", "MatMulFP6", "DequantizeINT99", "DequantizeFP6E9M9", "MatMulINT3Tiled", "MatMulCODEBOOK3Asymmetric"],
)
def test_unknown_operator(name: str) -> None:
    with pytest.raises(Exception, match=r"Nothing|no format|not a format|MatMulINT3Tiled|MatMulCODEBOOK3A"):
        functions([name], 21)


def test_bodies_use_only_standard_operators_and_each_other() -> None:
    asked = [f"MatMul{operator_suffix(each)}" for each in NAMED_FORMATS.values()]
    for function in functions(asked, 13):
        for node in function:
            assert node.domain in ("", DOMAIN)
            if node.domain == "":
                assert onnx.defs.get_schema(node.op_type, 13)


@pytest.mark.parametrize("opset", [13, 18, 26])
@pytest.mark.parametrize("sides", [(4, 6), (1, 8), (3, 3)])
def test_hadamard_rotates_rows_by_a_kronecker_product(sides, opset):
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((side, side)).astype(np.float32) for side in sides)
    x = rng.standard_normal((2, 5, sides[0] * sides[1])).astype(np.float32)
    node = helper.make_node("Hadamard", ["x", "left", "right"], ["y"], domain=DOMAIN)
    made = run(model_of(node, opset, 3, x=x, left=left, right=right))
    np.testing.assert_allclose(made, x @ np.kron(left.T, right), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 18, 26])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_outliers_are_added_where_they_belong(dtype: type, opset: int) -> None:
    # Farther apart than one distance can tell, in the first place and in the last.
    positions = np.array([0, 1, 3, 90_000, 90_001, 299_999])
    for values_type in (np.float16, np.float32):
        gaps, values = pack_sparse(positions, np.array([5, -6, 7, 8, -9, 10.5], values_type))
        weight = np.random.default_rng(0).standard_normal((3, 1000, 100)).astype(dtype)
        node = helper.make_node(
            "AddOutliers", ["w", "g", "v"], ["y"], domain=DOMAIN, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        )
        model = model_of(node, opset, 3, w=weight, g=gaps, v=values)
        expected = weight.astype(np.float32) + unpack_sparse(gaps, values, weight.size).reshape(weight.shape)
        np.testing.assert_array_equal(run(model), expected.astype(dtype))
        if opset == 13:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected.astype(dtype))


@pytest.mark.parametrize("opset", [13, 18, 26])
@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((7, 5), 0, 3), ((3, 5, 7), 1, 2), ((2, 33), 1, 33), ((2, 1), 0, 1)]
)
def test_partly_binary(shape: tuple[int, ...], axis: int, block: int, opset: int) -> None:
    rng = np.random.default_rng(0)
    for mask in (rng.random(shape) < 0.3, np.arange(np.prod(shape)).reshape(shape) == 0):
        mask.flat[0], mask.flat[-1] = True, False
        signs, integers = rng.random(shape) < 0.5, rng.integers(-127, 128, shape).astype(np.int8)
        groups = [-(-dim // block) if at == axis else dim for at, dim in enumerate(shape)]
        columns = [1 if at == axis else dim for at, dim in enumerate(shape)]
        scale, mean = rng.uniform(0.5, 2, groups).astype(np.float16), rng.standard_normal(groups).astype(np.float16)
        own = rng.uniform(0.01, 0.02, columns).astype(np.float32)
        node = helper.make_node(
            "PartlyBinary",
            list("bmsuiv"),
            ["y"],
            domain=DOMAIN,
            shape=list(shape),
            axis=axis,
            block_size=block,
            dtype=onnx.TensorProto.FLOAT,
        )
        packed = {"b": pack(signs[~mask].astype(np.uint8), 1), "m": pack(mask.astype(np.uint8), 1)}
        model = model_of(node, opset, len(shape), **packed, s=scale, u=mean, i=integers[mask], v=own)
        rows = np.arange(shape[axis]) // block
        scales, means = (np.take(each.astype(np.float32), rows, axis=axis) for each in (scale, mean))
        expected = np.where(mask, integers * own, np.where(signs, scales, -scales) + means)
        np.testing.assert_array_equal(run(model), expected)
        if opset == 13:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {})[0], expected)
