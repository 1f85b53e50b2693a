"""The step `rotate` keeps what a model computes, and rotates where that lowers the error."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.analysis.execution import execution
from onnxq.errors import UsageError
from onnxq.model.load import from_proto
from onnxq.recipes import parse_recipe
from onnxq.statistics.calibration import Calibration

SAMPLES = Path(__file__).parents[3] / "samples"
EVERYWHERE = "{method: rotate, choose: false}"
W4A4 = "weight: {format: int4}, activation: {format: int4, granularity: token}"


def recipe(*steps: str, rule: str = ""):
    rules = f"rules: [{{{rule}}}]" if rule else ""
    return parse_recipe(f"equalize: [{', '.join(steps)}]\n{rules}")


def rotated(proto: onnx.ModelProto, *steps: str):
    return onnxq.quantize_proto(proto, recipe(*(steps or [EVERYWHERE])))


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node if node.domain == "onnxq"]


@pytest.fixture
def data() -> list[dict[str, np.ndarray]]:
    return [{"ids": np.random.default_rng(seed).integers(0, 20, (2, 6))} for seed in range(20)]


@pytest.mark.parametrize("sites", ["residual", "value", "online", "[residual, value, online]"])
def test_the_function_stays_the_same(network, largest_change, sites):
    made, _ = rotated(network, f"{{method: rotate, choose: false, sites: {sites}}}")
    onnx.checker.check_model(made)
    assert largest_change(network, made) < 1e-5


def test_rotations_behind_each_other_keep_the_function(network, largest_change):
    made, _ = rotated(network, EVERYWHERE, "{method: rotate, choose: false, seed: 1}")
    assert largest_change(network, made) < 1e-5


def test_every_place_has_an_answer(llama, bert):
    _, report = rotated(llama())
    assert [each.done for each in report.changes] == [
        *["values rotated within heads"] * 2,
        *["input of a product rotated by an operator"] * 2,
        "residual stream rotated",
    ]
    _, report = rotated(bert())
    assert {each.done for each in report.changes} == {None, "input of a product rotated by an operator"}
    assert all(each.done or each.reason for each in report.changes)


def test_offline_rotations_leave_the_graph_as_it_is(llama):
    before = llama()
    after, _ = rotated(before, "{method: rotate, choose: false, sites: [residual, value]}")
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    old, new = arrays(before), arrays(after)
    changed = {name for name in old if name in new and not np.array_equal(old[name], new[name])}
    assert changed == {"table", "head"} | {f"b{at}_w{which}" for at in (0, 1) for which in "qkvogud"}
    # Scales of norms went into the weights behind them.
    scales = [new[node.input[1]] for node in after.graph.node if node.output[0].endswith(("first", "second", "norm"))]
    assert len(scales) == 5
    assert all((scale == 1).all() for scale in scales)


def test_a_tied_embedding_is_left_alone(llama):
    before = llama(tied=True, vocabulary=300)
    after, _ = rotated(before, "{method: rotate, choose: false, sites: residual}")
    assert operators(after) == ["Hadamard", "Hadamard"]
    np.testing.assert_array_equal(arrays(after)["table"], arrays(before)["table"])


def test_products_of_one_width_share_a_rotation(llama):
    after, _ = rotated(llama(), "{method: rotate, choose: false, sites: online}")
    nodes = [node for node in after.graph.node if node.op_type == "Hadamard"]
    assert len(nodes) == 2
    assert nodes[0].input[1:] == nodes[1].input[1:]
    assert [function.name for function in after.functions] == ["Hadamard"]
    assert execution(from_proto(after)).sentences()[0] == "2 values rotated by a function in every run"


def test_weights_stored_as_float16_lose_nothing(llama, largest_change):
    before = llama()
    halved = []
    for tensor in before.graph.initializer:
        if tensor.dims[-1:] and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            halved.append(onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=1))
            tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}_half"))
    for node in reversed(halved):
        before.graph.node.insert(0, node)
    assert largest_change(before, rotated(before)[0]) < 1e-5


def product_of_width(width: int, line: str = "y = MatMul(a, w)", dims: tuple[int, ...] = ()) -> onnx.ModelProto:
    signature = f"g (float[n, {width}] x) => (float[n, 4] y)"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> {signature} {{ a = Relu(x) {line} }}')
    array = np.random.default_rng(0).normal(size=dims or (width, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    return model


def test_a_few_channels_of_an_odd_number_are_left_alone():
    _, report = rotated(product_of_width(7))
    assert [each.reason for each in report.changes] == ["7 channels: only even numbers have a rotation"]


@pytest.mark.parametrize(
    ("line", "dims"),
    [
        ("y = MatMul(a, w)", (45, 4)),
        ("y = Gemm<transB=1>(a, w)", (4, 45)),
        ("t = Transpose<perm=[1, 0]>(w) y = MatMul(a, t)", (4, 45)),
    ],
)
def test_channels_without_a_good_rotation_are_filled_up(line, dims):
    before = product_of_width(45, line, dims)
    after, report = rotated(before)
    assert report.changes[0].done
    assert 48 in arrays(after)["w"].shape
    feed = {"x": np.random.default_rng(1).normal(size=(5, 45)).astype(np.float32)}
    results = [onnxruntime.InferenceSession(each.SerializeToString()).run(None, feed)[0] for each in (before, after)]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)


def test_an_old_opset_takes_no_operator():
    model = product_of_width(8)
    model.opset_import[0].version = 9
    _, report = rotated(model)
    assert "opset" in report.changes[0].reason


def with_outliers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Channels behind each norm, and of each up projection, that are 50 times as large; the function is the same."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name.endswith("gamma") and tensor.name != "norm_gamma":
            array[3] *= 50
        elif tensor.name[3:] in ("wq", "wk", "wv", "wg", "wu"):
            array[3] /= 50
        if tensor.name.endswith("wu"):
            array[:, 5] *= 50
        elif tensor.name.endswith("wd"):
            array[5] /= 50
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def test_outliers_are_worth_a_rotation(llama, data, largest_change):
    proto = with_outliers(llama())
    assert largest_change(llama(), proto) < 1e-5
    plain, _ = onnxq.quantize_proto(proto, recipe(rule=W4A4))
    turned, report = onnxq.quantize_proto(proto, recipe("{method: rotate}", rule=W4A4), calibration=Calibration(data))
    assert "residual stream rotated" in {each.done for each in report.changes}
    assert largest_change(proto, turned) < largest_change(proto, plain) / 2


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group, group_size: 8"])
@pytest.mark.parametrize("width", [48, 45])
def test_channels_that_are_filled_up_can_be_chosen(width, granularity):
    rows = np.random.default_rng(0).uniform(0, 1, (64, width)).astype(np.float32)
    rows[:, 7] *= 1000
    rule = f"weight: {{format: int4, granularity: {granularity}}}, activation: {{format: int4, granularity: token}}"
    made = product_of_width(width)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(outlier_rows(width), "w"))
    _, report = onnxq.quantize_proto(made, recipe("{method: rotate}", rule=rule), calibration=Calibration(rows))
    assert report.changes[0].done


def outlier_rows(width: int) -> np.ndarray:
    weight = np.random.default_rng(1).normal(size=(width, 4)).astype(np.float32)
    weight[7] /= 1000
    return weight


def test_what_is_not_quantized_is_not_rotated(llama, data):
    chosen = recipe("{method: rotate}", rule='match: {name: "b0_wd"}, weight: {format: int4}')
    _, report = onnxq.quantize_proto(with_outliers(llama()), chosen, calibration=Calibration(data))
    assert "nothing around it is quantized" in {each.reason for each in report.changes}


def test_what_the_caller_leaves_out_is_not_rotated(llama, data):
    asked, proto = recipe("{method: rotate, sites: online}", rule=W4A4), with_outliers(llama())
    _, report = onnxq.quantize_proto(proto, asked, calibration=Calibration(data), include="b0_wd")
    assert [each.reason for each in report.changes] == [None, "nothing around it is quantized"]


def test_choosing_needs_data(llama):
    with pytest.raises(UsageError, match=r"rotate.*data"):
        onnxq.quantize_proto(llama(), recipe("{method: rotate}", rule=W4A4))


@pytest.mark.parametrize(("sample", "data"), [("code_lm/model.onnx", None), ("digits/vit.onnx", "digits/test.npz")])
def test_real_models_keep_their_function(sample, data, tmp_path):
    made = tmp_path / "rotated.onnx"
    report = onnxq.quantize(SAMPLES / sample, recipe(EVERYWHERE), output=made)
    assert "residual stream rotated" in {each.done for each in report.changes}
    if data is None:
        feed = {"input_ids": np.load(SAMPLES / "code_lm/heldout.npy")[:128].astype(np.int64)[None]}
    else:
        feed = {"image": np.load(SAMPLES / data)["image"][:16]}
    before, after = (onnxq.session(path).run(None, feed)[0] for path in (SAMPLES / sample, made))
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
