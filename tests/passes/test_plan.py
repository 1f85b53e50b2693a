"""The plan: one decision a weight, with a reason where it stays float, and the versions that the rest needs."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.errors import UsageError
from onnxq.formats import get_format, get_scale_type
from onnxq.model.sites import find_weights
from onnxq.passes.plan import grouping, make_plan
from onnxq.passes.selection import Selection
from onnxq.passes.target import check_target, is_standard_form, needed_versions
from onnxq.recipes import QuantSpec, Recipe, load_recipe, parse_recipe

MATMUL = "g (float[3,64] x) => (float[3,64] y) { [n] y = MatMul(x, w) }"


def model(text: str = MATMUL, opset: int = 21, dtype=np.float32, **shapes: tuple[int, ...]) -> ir.Model:
    proto = parser.parse_model(f'<ir_version: 7, opset_import: ["": {opset}]> {text}')
    for name, shape in (shapes or {"w": (64, 64)}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, dtype), name))
    return ir.from_proto(proto)


def decide(recipe: str | Recipe, target: str = "ort", selection: Selection | None = None, **kwargs):
    plan, _ = make_plan(model(**kwargs), load_recipe(recipe), check_target(target), selection or Selection())
    return plan


def test_every_weight_is_decided_once() -> None:
    text = "g (float[3,64] x) => (float[3,64] y) { [a] h = MatMul(x, v) [b] y = MatMul(h, w) [c] z = Add(x, u) }"
    plan = decide("int8", text=text, v=(64, 64), w=(64, 64), u=(3, 64), nobody=(4, 4))
    assert [(each.weight, each.reason) for each in plan] == [
        ("v", None),
        ("w", None),
        ("u", "read by Add, not as a weight"),
        ("nobody", "nobody reads it"),
    ]
    assert len(plan.quantized) + len(plan.skipped) == len(plan.decisions) == 4
    assert [each.readers for each in plan.quantized] == [("a",), ("b",)]
    assert all((each.spec is None) == (each.reason is not None) for each in plan)
    assert all(each.planned_bytes == each.size_bytes for each in plan.skipped)


def test_plan_changes_nothing() -> None:
    subject = model()
    before = ir.to_proto(subject).SerializeToString()
    plan, weights = make_plan(subject, load_recipe("int2"), "ort")
    assert plan.opset == 25
    assert len(weights) == 1
    assert ir.to_proto(subject).SerializeToString() == before


@pytest.mark.parametrize(
    ("spec", "shape", "size_bytes"),
    [
        ("{format: int8}", (64, 64), 4096 + 64 * 4),
        ("{format: int4}", (64, 64), 2048 + 64 * 4),
        ("{format: int4, granularity: group, group_size: 32}", (64, 64), 2048 + 128 * 4),
        ("{format: int4, granularity: group, group_size: 32, symmetric: false}", (64, 64), 2048 + 128 * 4 + 64),
        (
            "{format: int3, granularity: group, group_size: 48, scale: fp16, symmetric: false}",
            (64, 64),
            1536 + 256 + 48,
        ),
        ("{format: fp6_e2m3, granularity: tensor}", (64, 64), 3072 + 4),
        ("{format: [fp4_e2m1, fp6_e2m3]}", (64, 64), 3072 + 256),
        ("{format: fp4_e2m1, granularity: group, group_size: 32, scale: e8m0}", (64, 64), 2048 + 128 + 4),
        ("{format: fp4_e2m1, granularity: group, group_size: 16, scale: e4m3}", (64, 64), 2048 + 256 + 4),
        ("{format: fp6_e2m3}", (63, 61), (63 * 61 * 6 + 7) // 8 + 61 * 4),
    ],
)
def test_planned_bytes(spec: str, shape: tuple[int, int], size_bytes: int) -> None:
    (decision,) = decide(parse_recipe(f"rules:\n  - weight: {spec}"), w=shape)
    assert decision.spec is not None
    assert decision.planned_bytes == size_bytes


@pytest.mark.parametrize(
    ("recipe", "shape", "why"),
    [
        ("int8", (1, 64), "would not get smaller (320 bytes with scales, 256 now)"),
        ("fp6", (1, 64), "would not get smaller (304 bytes with scales, 256 now)"),
        ("int4", (64, 0), "empty"),
        ("int8", (0, 64), "empty"),
        ("none", (64, 64), "no rule matches"),
    ],
)
def test_reason(recipe: str, shape: tuple[int, int], why: str) -> None:
    (decision,) = decide(recipe, w=shape)
    assert decision.reason == why
    assert decision.planned_bytes == decision.size_bytes


def test_selection_comes_before_the_recipe() -> None:
    (decision,) = decide("none", selection=Selection(exclude=("w",)))
    assert decision.reason == "excluded"
    (decision,) = decide("int8", selection=Selection(include=("v*",)))
    assert decision.reason == "not included"
    (decision,) = decide("int8", selection=Selection(include=("n",), exclude=("W",)))
    assert decision.reason is None


ROI = """g (float[3,64] x, float[1,1,8,8] i, float[2,4] r, int64[2] b) => (float[3,64] y, float[2,1,1,1] z)
{ [n] y = MatMul(x, w) [roi] z = RoiAlign(i, r, b) }"""


@pytest.mark.parametrize(
    ("recipe", "target", "why"),
    [
        ("fp6", "ort", None),
        ("int8", "ort", None),
        ("int4", "ort", None),
        ("fp6", "standard", "needs opset 28, and RoiAlign 'roi' changed its meaning since opset 13"),
        ("int4", "standard", "needs opset 28, and RoiAlign 'roi' changed its meaning since opset 13"),
        ("fp6-e2m3", "ort-int8", None),
    ],
)
def test_obstacle_to_the_opset_is_a_reason(recipe: str, target: str, why: str | None) -> None:
    (decision,) = (each for each in decide(recipe, target, text=ROI, opset=13) if each.weight == "w")
    assert decision.reason == why


@pytest.mark.parametrize(("recipe", "opset"), [("int4", 21), ("int2", 25)])
def test_without_the_opset_a_weight_leaves_under_a_function(recipe: str, opset: int) -> None:
    proto = ir.to_proto(model(ROI, 13, w=(64, 64)))
    emitted, report = onnxq.quantize_proto(proto, recipe)
    way = f"as DequantizeLinear needs opset {opset}, and RoiAlign 'roi' changed its meaning since opset 13"
    assert f"1 weight under onnxq operators, {way}" in report.warnings
    assert emitted.opset_import[0].version == 13
    feeds = {
        "x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32),
        "i": np.ones((1, 1, 8, 8), np.float32),
        "r": np.ones((2, 4), np.float32),
        "b": np.zeros(2, np.int64),
    }
    before, after = (onnxq.session(each.SerializeToString()).run(["y"], feeds)[0] for each in (proto, emitted))
    # All weights are one, which each of the formats has.
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_old_model_says_how_to_raise_it() -> None:
    (decision,) = decide("fp6", opset=11)
    assert decision.reason == "needs opset 13, the model has 11: raise it to 13 or more with onnx.version_converter"


CONV = "g (float[1,16,9,9] x) => (float[1,8,7,7] y) { [n] y = Conv(x, w) }"


@pytest.mark.parametrize(
    ("recipe", "target", "opset", "ir_version"),
    [
        ("fp6", "ort", 13, 8),
        ("nvfp4", "ort", 13, 8),
        ("int3", "ort", 13, 8),
        ("int8", "ort", 13, 8),
        ("fp6", "standard", 28, 14),
        ("int3", "standard", 28, 14),
    ],
)
def test_versions_of_a_convolution(recipe: str, target: str, opset: int, ir_version: int) -> None:
    plan = decide(recipe, target, text=CONV, opset=13, w=(8, 16, 3, 3))
    assert (plan.opset, plan.ir_version) == (opset, ir_version)
    assert decide("none", text=CONV, w=(8, 16, 3, 3)).opset == 0


@pytest.mark.parametrize(
    ("text", "shape", "granularity", "matrix", "scales"),
    [
        (MATMUL, (64, 48), "channel", (1, 64, 48), 48),
        (MATMUL, (64, 48), "tensor", (1, 64, 48), 1),
        (MATMUL, (64, 48), "group", (1, 64, 48), 2 * 48),
        (MATMUL, (65, 48), "group", (1, 65, 48), 3 * 48),
        (MATMUL, (5, 64, 48), "channel", (5, 64, 48), 5 * 48),
        (MATMUL.replace("(x, w)", "(w, x)"), (48, 64), "channel", (48, 64, 1), 48),
        (MATMUL.replace("(x, w)", "(w, x)"), (48, 64), "group", (48, 64, 1), 2 * 48),
        (CONV, (8, 16, 3, 3), "channel", (8, 144, 1), 8),
        (CONV, (8, 16, 3, 3), "group", (8, 144, 1), 5 * 8),
        (CONV.replace("Conv", "ConvTranspose"), (16, 8, 3, 3), "channel", (1, 16, 72), 72),
        (MATMUL.replace("MatMul(x, w)", "Gather(w, x)"), (48, 64), "channel", (48, 64, 1), 48),
    ],
)
def test_grouping(
    text: str, shape: tuple[int, ...], granularity: str, matrix: tuple[int, int, int], scales: int
) -> None:
    (weight,) = find_weights(model(text, w=shape))
    spec = QuantSpec(format="int4", granularity=granularity, group_size=32 if granularity == "group" else None)
    group = grouping(weight, spec)
    assert group.matrix == matrix
    assert group.scales == scales


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, "fp32"), (np.float16, "fp16")])
def test_scales_are_of_the_type_of_the_weight(dtype: type, scale: str) -> None:
    (weight,) = find_weights(model(dtype=dtype))
    assert grouping(weight, QuantSpec(format="int4")).scale_type.name == scale
    assert grouping(weight, QuantSpec(format="int4", scale="bf16")).scale_type.name == "bf16"


@pytest.mark.parametrize("name", ["ORT", "ort_int8", "", "int8"])
def test_no_such_target(name: str) -> None:
    with pytest.raises(UsageError, match="valid: ort, standard, ort-int8"):
        check_target(name)


@pytest.mark.parametrize(
    ("kind", "scale", "dtype", "ort", "standard"),
    [
        ("int4", "fp32", ir.DataType.FLOAT, True, True),
        ("int4", "fp16", ir.DataType.FLOAT, False, True),
        ("int4", "fp16", ir.DataType.FLOAT16, True, True),
        ("fp6_e2m3", "fp32", ir.DataType.FLOAT, False, True),
        ("fp4_e2m1", "e8m0", ir.DataType.FLOAT, False, True),
        ("fp8_e4m3", "fp32", ir.DataType.FLOAT, True, True),
        ("int3", "fp32", ir.DataType.FLOAT, False, False),
        ("nf4", "fp32", ir.DataType.FLOAT, False, False),
    ],
)
def test_standard_form(kind: str, scale: str, dtype: ir.DataType, ort: bool, standard: bool) -> None:
    arguments = get_format(kind), get_scale_type(scale), dtype
    assert is_standard_form(*arguments, "ort") is ort
    assert is_standard_form(*arguments, "standard") is standard


@pytest.mark.parametrize(
    ("kind", "dtype", "standard", "blocked", "versions"),
    [
        ("int8", ir.DataType.FLOAT, True, False, (13, 7)),
        ("int8", ir.DataType.FLOAT16, True, False, (19, 9)),
        ("int8", ir.DataType.FLOAT, True, True, (21, 10)),
        ("int4", ir.DataType.FLOAT, True, False, (21, 10)),
        ("uint2", ir.DataType.FLOAT, True, True, (25, 13)),
        ("int3", ir.DataType.FLOAT, False, True, (13, 8)),
        ("int4", ir.DataType.FLOAT, False, True, (13, 8)),
    ],
)
def test_needed_versions(
    kind: str, dtype: ir.DataType, standard: bool, blocked: bool, versions: tuple[int, int]
) -> None:
    opset, ir_version = needed_versions(get_format(kind), dtype, "ort", standard=standard, blocked=blocked)
    assert (opset, ir_version) == versions
    assert needed_versions(get_format(kind), dtype, "standard", standard=True, blocked=blocked) == (28, 14)
