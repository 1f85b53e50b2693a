"""The residual stream is found where there is one, and left alone with a reason where it cannot be rotated."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxq.model.load import from_proto
from onnxq.model.shapes import Shapes
from onnxq.model.sites import find_weights
from onnxq.passes.rotation.linear import find_linears
from onnxq.passes.rotation.places import Heads, find_heads, find_products
from onnxq.passes.rotation.stream import Refused, Stream, find_streams

WIDTH, HEAD = 16, 8


def parts(proto: onnx.ModelProto):
    model = from_proto(proto).ir
    weights, shapes = find_weights(model), Shapes(model)
    linears = find_linears(model.graph, weights)
    return find_streams(model.graph, shapes, linears, weights), linears, shapes


def stream(proto: onnx.ModelProto) -> Stream | Refused:
    (found,) = parts(proto)[0]
    return found


def names(linears) -> set[str]:
    return {linear.weight.name for linear in linears}


def reading(proto: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    """The model with a node more, whose result is an output."""
    proto.graph.node.append(node)
    proto.graph.output.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None] * 3))
    return proto


def test_rms_norms_written_out(llama):
    found = stream(llama())
    assert (found.name, found.width, found.keeps_mean) == ("x0", WIDTH, False)
    assert names(found.linears) == {"b0_wo", "b0_wd", "b1_wo", "b1_wd"}
    assert [table.name for table in found.tables] == ["table"]
    assert names(linear for linear, _ in found.readers) == {
        *(f"b{block}_{name}" for block in (0, 1) for name in ("wq", "wk", "wv", "wg", "wu")),
        "head",
    }
    assert {norm.scale[0].inputs[norm.scale[1]].name for norm in found.norms} == {
        *(f"b{block}_{name}_gamma" for block in (0, 1) for name in ("first", "second")),
        "norm_gamma",
    }
    assert not found.entries
    assert not found.exits


def test_a_tied_embedding_stays_as_it_is(llama):
    found = stream(llama(tied=True))
    assert not found.tables
    assert [value.name for value in found.entries] == ["x0"]
    assert [value.name for value in found.exits] == ["x2"]
    assert "head" not in names(linear for linear, _ in found.readers)


def test_layer_norms_and_flattened_rows(gpt):
    found = stream(gpt())
    assert found.keeps_mean
    assert names(found.linears) == {"b0_wo", "b0_wd", "b1_wo", "b1_wd"}
    assert names(linear for linear, _ in found.readers) == {"b0_wqkv", "b0_wu", "b1_wqkv", "b1_wu", "head"}
    assert all(norm.shift is not None for norm in found.norms)


def test_post_norm_is_refused(bert):
    found = parts(bert())[0]
    assert found
    assert all("post-norm" in each.reason for each in found)


@pytest.mark.parametrize(
    ("value", "exit_name"), [("b1_x", "b1_x"), ("b1_first_unit", "x1"), ("b1_second_mean", "b1_x")]
)
def test_one_other_reader_gets_it_rotated_back(llama, value, exit_name):
    found = stream(reading(llama(), helper.make_node("Relu", [value], ["z"], "watch")))
    assert [each.name for each in found.exits] == [exit_name]


def test_who_asks_for_the_shape_does_not_matter(llama):
    proto = llama()
    proto.graph.node.append(helper.make_node("Shape", ["b0_first"], ["z"]))
    assert not stream(proto).exits


def test_two_other_readers_are_too_many(llama):
    proto = reading(llama(), helper.make_node("Relu", ["b0_x"], ["z"], "first"))
    proto = reading(proto, helper.make_node("Relu", ["b1_x"], ["z2"], "second"))
    assert "first" in stream(proto).reason


def test_an_output_of_the_model_is_refused(llama, with_output):
    assert stream(with_output(llama(), "b0_x")).reason == "'b0_x' is an output of the model"


def test_a_norm_that_is_an_output_reads_it_rotated_back(llama, with_output):
    found = stream(with_output(llama(), "norm"))
    assert [value.name for value in found.exits] == ["x2"]


def test_a_number_added_to_all_channels_is_refused(llama):
    proto = llama()
    node = next(node for node in proto.graph.node if node.output[0] == "b0_x")
    node.output[0] = "b0_x_before"
    at = list(proto.graph.node).index(node) + 1
    proto.graph.node.insert(at, helper.make_node("Add", ["b0_x_before", "eps"], ["b0_x"], "shift"))
    assert stream(proto).reason == "Add 'shift' adds one number to all channels"


def test_weights_that_are_read_twice_are_not_written(llama):
    proto = llama()
    for node in proto.graph.node:
        node.input[:] = ["b0_wq" if name == "b1_wq" else name for name in node.input]
    found = stream(proto)
    assert isinstance(found, Refused)
    assert "MatMul" in found.reason


def test_a_norm_of_heads_is_no_stream(llama):
    proto = llama()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(HEAD, np.float32), "gq"))
    at = next(at for at, node in enumerate(proto.graph.node) if node.output[0] == "b0_qh")
    proto.graph.node[at].input[0] = "normed"
    proto.graph.node.insert(at, helper.make_node("RMSNormalization", ["b0_q4", "gq"], ["normed"]))
    proto.opset_import[0].version = 23
    assert len(parts(proto)[0]) == 1


def test_heads_between_values_and_output(llama, gpt):
    for proto, value, columns in ((llama(), "b0_wv", (0, HEAD)), (gpt(), "b0_wqkv", (2 * WIDTH, 3 * WIDTH))):
        _, linears, shapes = parts(proto)
        first = find_heads(linears, shapes)[0]
        assert isinstance(first, Heads)
        assert (first.value.weight.name, first.columns, first.width) == (value, columns, HEAD)
        assert first.output.weight.name == "b0_wo"


def test_values_that_are_an_output_are_refused(llama, with_output):
    _, linears, shapes = parts(with_output(llama(), "b0_vh", rank=4))
    refused, other = find_heads(linears, shapes)
    assert refused == Refused("b0_att", "its values are an output of the model, 'b0_vh'")
    assert isinstance(other, Heads)


def test_values_that_somebody_else_reads_are_refused(llama):
    _, linears, shapes = parts(reading(llama(), helper.make_node("Relu", ["b1_v"], ["z"], "watch")))
    assert [each.reason for each in find_heads(linears, shapes) if isinstance(each, Refused)] == [
        "Relu 'watch' reads its values too"
    ]


@pytest.mark.parametrize("name", ["llama", "gpt", "bert"])
def test_products_behind_activations(name, request):
    found, linears, shapes = parts(request.getfixturevalue(name)())
    streams = [each for each in found if isinstance(each, Stream)]
    heads = [each for each in find_heads(linears, shapes) if isinstance(each, Heads)]
    assert names(find_products(linears, shapes, streams, heads)) == {"b0_wd", "b1_wd"}


def test_what_writes_into_the_stream_and_has_no_other_rotation(llama, with_output):
    found, linears, shapes = parts(with_output(llama(), "b0_vh", rank=4))
    heads = [each for each in find_heads(linears, shapes) if isinstance(each, Heads)]
    assert names(find_products(linears, shapes, found, heads)) == {"b0_wo", "b0_wd", "b1_wd"}
