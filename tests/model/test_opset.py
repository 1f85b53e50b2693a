"""Raising the opset changes nothing that a model computes; where it would, that is said."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import defs, parser
from onnx.reference import ReferenceEvaluator

from onnxq.model.opset import obstacle_to, opset_of, raise_to

LATEST = 28

# Operators whose schema changed between opset 13 and 28 in more than its types, as (name, version), read and found to
# mean the same for every node that could be written before: new attributes and inputs that default to the old meaning,
# better words. A release of ONNX that changes one more fails the test below until it is read.
SAME = {
    *((name, 14) for name in ("Add", "Div", "Mul", "Sub", "GRU", "LSTM", "RNN", "Reshape", "BatchNormalization")),
    ("BatchNormalization", 15),
    *(("Attention", version) for version in (24, 25)),
    *(("AveragePool", version) for version in (19, 22)),
    ("BitShift", 28),
    *((name, version) for name in ("Cast", "CastLike") for version in (19, 24)),
    *(("DequantizeLinear", version) for version in (19, 21, 23)),
    *(("QuantizeLinear", version) for version in (19, 21, 23, 25)),
    ("Loop", 16),
    ("LpPool", 18),
    ("MaxPool", 22),
    ("Mod", 28),
    *((name, 18) for name in ("OptionalGetElement", "OptionalHasElement")),
    ("PRelu", 16),
    *(("Pad", version) for version in (18, 19)),
    ("Range", 27),
    *(("Resize", version) for version in (18, 19)),
    *((name, version) for name in ("ScatterElements", "ScatterND") for version in (16, 18)),
    ("Shape", 15),
    ("SpaceToDepth", 28),
    *((name, 20) for name in ("ReduceMax", "ReduceMin")),
}
# Rewritten, so that they mean the same.
ADAPTED = {
    *((f"Reduce{kind}", 18) for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]),
    ("Split", 18),
}
# Refused where a node stands below that version and would come above it.
REFUSED = {("DFT", 20), ("GridSample", 20), ("GroupNormalization", 21), ("RoiAlign", 16)}


def history() -> dict[str, list[defs.OpSchema]]:
    """All versions of each standard operator, from the one in force at opset 13."""
    versions: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema)
    for name, schemas in versions.items():
        schemas.sort(key=lambda each: each.since_version)
        first = max([0, *(at for at, each in enumerate(schemas) if each.since_version <= 13)])
        versions[name] = schemas[first:]
    return versions


def differs(old: defs.OpSchema, new: defs.OpSchema) -> bool:
    """In more than its types."""

    def shown(schema: defs.OpSchema) -> tuple[object, ...]:
        attributes = {name: (str(each.default_value), each.required) for name, each in schema.attributes.items()}
        arity = (schema.min_input, schema.max_input, schema.min_output, schema.max_output)
        return attributes, arity, schema.doc, schema.deprecated

    return shown(old) != shown(new)


def model_of(op_type: str, inputs: int, opset: int, outputs: int = 1, **attributes: object) -> ir.Model:
    names = [f"i{at}" for at in range(inputs)]
    node = onnx.helper.make_node(op_type, names, [f"o{at}" for at in range(outputs)], name="n", **attributes)
    graph = onnx.helper.make_graph([node], "g", [], [])
    return ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    )


def test_no_change_of_an_operator_slips_through() -> None:
    changed = {
        (name, new.since_version)
        for name, schemas in history().items()
        for old, new in itertools.pairwise(schemas)
        if differs(old, new)
    }
    assert defs.onnx_opset_version() == LATEST
    assert changed == SAME | ADAPTED | REFUSED


def test_plain_nodes_are_refused_where_the_meaning_changed() -> None:
    checked = 0
    for name, schemas in history().items():
        for old, new in itertools.pairwise(schemas):
            here = max(13, new.since_version - 1)
            why = obstacle_to(model_of(name, old.min_input, here), new.since_version)
            if (name, new.since_version) in REFUSED:
                assert why, name
                assert f"{name} 'n'" in why
            else:
                assert why is None, (name, why)
            checked += 1
    assert checked > 180


def test_every_operator_can_be_asked_about_every_opset() -> None:
    for name, schemas in history().items():
        for here in range(13, LATEST):
            for there in (here + 1, LATEST):
                obstacle_to(model_of(name, schemas[0].min_input, here), there)


@pytest.mark.parametrize(
    ("node", "here", "there", "why"),
    [
        (("DFT", 1, {"axis": 1}), 17, 20, "lost its attribute 'axis'"),
        (("DFT", 1, {}), 17, 20, "changed the default of 'axis'"),
        (("DFT", 1, {}), 17, 19, None),
        (("GridSample", 2, {"mode": "bilinear"}), 16, 20, "changed its meaning"),
        (("GridSample", 2, {"mode": "bilinear"}), 16, 19, None),
        (("GroupNormalization", 3, {"num_groups": 2}), 18, 21, "changed its meaning"),
        (("RoiAlign", 3, {}), 15, 16, "changed its meaning"),
        (("RoiAlign", 3, {}), 16, 28, None),
        (("GroupNormalization", 3, {"num_groups": 2}), 13, 21, "is not defined at opset 13"),
        (("ReduceMean", 1, {}), 13, 18, None),
        (("ReduceMean", 1, {"axes": [1]}), 13, 18, None),
        (("Upsample", 2, {}), 13, 18, None),
        (("NoSuchOperator", 1, {}), 13, 28, None),
        (("Relu", 1, {}), 12, 13, "the model has 12: raise it to 13 or more with onnx.version_converter"),
        (("Relu", 1, {}), 7, 28, "the model has 7"),
        (("Relu", 1, {}), 28, 13, None),
    ],
)
def test_obstacle_is_named(node: tuple, here: int, there: int, why: str | None) -> None:
    op_type, inputs, attributes = node
    found = obstacle_to(model_of(op_type, inputs, here, **attributes), there)
    assert (why in found) if why else found is None


def test_training_outputs_are_an_obstacle() -> None:
    assert obstacle_to(model_of("BatchNormalization", 5, 13), 14) is None
    assert "changed its inputs or outputs" in (obstacle_to(model_of("BatchNormalization", 5, 13, outputs=3), 14) or "")
    assert "changed its inputs or outputs" in (obstacle_to(model_of("BatchNormalization", 5, 13, outputs=5), 14) or "")


COMPUTE = {
    # name: nodes of `g (float[2,6,4] x) => (float[...] y)` at opset 13.
    **{
        f"{kind} {axes}": f"y = Reduce{kind}<{axes}>(x)"
        for kind in ("L1", "LogSumExp", "Max", "Mean")
        for axes in ("axes=[1], keepdims=0", "axes=[-1,0]", "keepdims=1", "keepdims=0")
    },
    "split in halves": "a, b = Split<axis=1>(x) y = Sub(a, b)",
    "split as told": "s = Constant<value_ints=[1,5]>() a, b = Split<axis=1>(x, s) y = Add(a, b)",
    "reduce inside if": "c = Constant<value=bool {1}>() y = If(c) <"
    "then_branch = t () => (u) { u = ReduceMax<axes=[2]>(x) }, "
    "else_branch = e () => (v) { v = ReduceMin<axes=[2]>(x) }>",
    "batch normalization": "w = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0]>() "
    "y = BatchNormalization(x, w, w, w, w)",
    "pad": 'p = Constant<value_ints=[0,0,1,0,0,1]>() y = Pad<mode="reflect">(x, p)',
    "resize": 's = Constant<value_floats=[1.0,1.0,1.5]>() y = Resize<mode="linear">(x, , s)',
    "average pool": "y = AveragePool<kernel_shape=[3], strides=[2], ceil_mode=1, pads=[1,1]>(x)",
    "max pool": "y = MaxPool<kernel_shape=[3], strides=[2], ceil_mode=1>(x)",
    "lp pool": "y = LpPool<kernel_shape=[2]>(x)",
    "shape and reshape": "s = Shape(x) r = Reshape(x, s) y = ReduceMax<keepdims=0>(r)",
    "scatter": "i = Constant<value=int64[1,1,1] {1}>() u = Constant<value=float[1,1,1] {9.0}>() "
    "y = ScatterElements<axis=1>(x, i, u)",
    "names that onnx-ir would give": "val_0 = Relu(x) val_1 = ReduceMean<axes=[1]>(val_0) "
    "y = ReduceMax<axes=[0]>(val_1)",
}


@pytest.mark.parametrize("name", COMPUTE)
@pytest.mark.parametrize("opset", [18, 21, 26])
def test_result_stays_the_same(name: str, opset: int) -> None:
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[2,6,4] x) => (float[] y) {{ {COMPUTE[name]} }}'
    proto = parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto)
    model = ir.from_proto(proto)
    assert obstacle_to(model, opset) is None
    raise_to(model, opset, 13 if opset > 21 else 10)
    raised = ir.to_proto(model)
    assert raised.opset_import[0].version == opset
    onnx.checker.check_model(raised, full_check=True)
    x = np.abs(np.random.default_rng(0).standard_normal((2, 6, 4))).astype(np.float32) + 0.1
    before, after = (run(each, x) for each in (proto, raised))
    np.testing.assert_array_equal(before, after)
    originals = [(node.op_type, list(node.output)) for node in proto.graph.node]
    assert [pair for pair in ((n.op_type, list(n.output)) for n in raised.graph.node) if pair in originals] == originals


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


TWO_OPSETS = """<ir_version: 10, opset_import: ["": {main}, "local": 1]>
g (float[2,6,4] x) => (float[2,1,4] y) {{ a = Relu(x) y = local.F(a) }}
<domain: "local", opset_import: [{inner}]> F (x) => (y) {{ [r] y = {body} }}"""


def test_functions_are_raised_from_where_they_are() -> None:
    proto = parser.parse_model(TWO_OPSETS.format(main=21, inner='"": 13', body="ReduceMean<axes=[1]>(x)"))
    model = ir.from_proto(proto)
    assert obstacle_to(model, 18) is None
    raise_to(model, 18, 10)
    raised = ir.to_proto(model)
    assert raised.opset_import[0].version == 21
    assert raised.functions[0].opset_import[0].version == 18
    assert [node.op_type for node in raised.functions[0].node] == ["Constant", "ReduceMean"]
    x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    # onnxruntime 1.31 reads functions with the opset of the main graph, so it refuses the model as it was.
    np.testing.assert_allclose(ReferenceEvaluator(proto).run(None, {"x": x})[0], run(raised, x), rtol=1e-6)


@pytest.mark.parametrize(
    ("main", "inner", "body", "why"),
    [
        (21, '"": 13', "RoiAlign(x, x, x)", "RoiAlign 'r' changed its meaning since opset 13"),
        (21, '"": 11', "Relu(x)", "function 'F' has 11"),
        (13, '"": 21', "Relu(x)", None),
        (21, '"": 17, "other": 1', "other.What(x)", None),
        (21, '"other": 1', "other.What(x)", None),
    ],
)
def test_obstacles_in_functions(main: int, inner: str, body: str, why: str | None) -> None:
    model = ir.from_proto(parser.parse_model(TWO_OPSETS.format(main=main, inner=inner, body=body)))
    found = obstacle_to(model, 21)
    assert (why in found) if why else found is None
    if not why:
        before = {function.name: dict(function.opset_imports) for function in model.functions.values()}
        raise_to(model, 21, 10)
        after = next(iter(model.functions.values())).opset_imports
        assert after.get("", 0) in (0, 21)
        assert ("" in after) == ("" in before["F"])
        assert opset_of(model) == 21


def test_graph_that_imports_no_standard_operators() -> None:
    text = (
        '<ir_version: 8, opset_import: ["com.microsoft": 1]> g (float[2] x) => (float[2] y) { y = com.microsoft.F(x) }'
    )
    model = ir.from_proto(parser.parse_model(text))
    assert opset_of(model) == 0
    assert obstacle_to(model, 21) is None
    raise_to(model, 21, 10)
    assert model.graph.opset_imports == {"com.microsoft": 1, "": 21}


def test_the_long_name_of_the_domain_stays() -> None:
    text = '<ir_version: 8, opset_import: ["ai.onnx": 13]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    model = ir.from_proto(parser.parse_model(text))
    assert opset_of(model) == 13
    raise_to(model, 21, 10)
    assert opset_of(model) == 21
    assert sum(key in ("", "ai.onnx") for key in model.graph.opset_imports) == 1


def test_versions_never_fall() -> None:
    model = model_of("Relu", 1, 28)
    model.ir_version = 14
    raise_to(model, 13, 8)
    assert (opset_of(model), model.ir_version) == (28, 14)


def test_axes_that_a_function_is_given_are_an_obstacle() -> None:
    text = """<ir_version: 10, opset_import: ["": 13, "local": 1]>
    g (float[2,6,4] x) => (float[2,1,4] y) { y = local.F<axes=[1]>(x) }
    <domain: "local", opset_import: ["": 13]> F <axes>(x) => (y) { [r] y = ReduceMean<axes: ints = @axes>(x) }"""
    model = ir.from_proto(parser.parse_model(text))
    assert "ReduceMean 'r' lost its attribute 'axes'" in (obstacle_to(model, 18) or "")
