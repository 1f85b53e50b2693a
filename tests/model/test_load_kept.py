"""Nothing is lost silently: every field that ONNX defines survives load and save, or the model is refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from google.protobuf.message import Message

from onnxq.errors import ModelError
from onnxq.model.load import from_proto, guard, load
from onnxq.model.save import stage

# Holds every field of every message that a conversion keeps.
FULL = """
<
    ir_version: 11, opset_import: ["" : 21, "f" : 1, "other" : 2],
    producer_name: "maker", producer_version: "1.2", domain: "com.example", model_version: 7,
    doc_string: "of the model", metadata_props: ["key" : "value", "a" : "b"]
>
g (float[N, 4] x, seq(float[2]) s, optional(float[2]) o, sparse_tensor(float[2]) p, bool c) => (float[N, 4] y)
    <float[4] w = {1.0, 2.0, 3.0, 4.0}, float[N, 4] a>
{
    [first] a = Add (x, w)
    b = f.body <alpha = 2.0> (a)
    d = other.Op <
        i = 3, f = 1.5, s = "text", is = [1, 2], fs = [1.0, 2.0], ss = ["a", "b"],
        t = float[2] {1.0, 2.0}, g = h (float[1] q) => (float[1] r) { r = Relu(q) }
    > (b)
    y = If(c) <
        then_branch = t () => (float[N, 4] u) <float[1] v = {1.0}> { u = Add(d, v) },
        else_branch = e () => (float[N, 4] z) { k = Constant <value = float[1] {1.0}> () z = Add(d, k) }
    >
}
<domain: "f", opset_import: ["" : 21], doc_string: "of the function">
body <alpha: float = 1.0, beta> (m) => (n) <float[2] n> { j = Constant <value_float: float = @alpha> () n = Mul(m, j) }
"""

Change = Callable[[onnx.ModelProto], object]


def _full() -> onnx.ModelProto:
    model = onnx.parser.parse_model(FULL)
    graph = model.graph
    graph.doc_string = "of the graph"
    graph.metadata_props.add(key="graph", value="1")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    graph.input[0].doc_string = "of x"
    graph.input[0].metadata_props.add(key="input", value="2")
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.initializer[0].doc_string = "of w"
    graph.initializer[0].metadata_props.add(key="tensor", value="3")
    first = graph.node[0]
    first.doc_string = "of the node"
    first.metadata_props.add(key="node", value="4")
    model.functions[0].metadata_props.add(key="function", value="5")
    model.functions[0].overload = graph.node[1].overload = "v2"
    for index, name in ((0, "of an attribute"), (6, "of a tensor attribute")):
        graph.node[2].attribute[index].doc_string = name
    tensors = graph.node[2].attribute.add(name="ts", type=onnx.AttributeProto.TENSORS)
    tensors.tensors.append(graph.initializer[0])
    graphs = graph.node[2].attribute.add(name="gs", type=onnx.AttributeProto.GRAPHS)
    graphs.graphs.append(graph.node[2].attribute[7].g)
    kind = graph.node[2].attribute.add(name="tp", type=onnx.AttributeProto.TYPE_PROTO)
    kind.tp.CopyFrom(graph.input[0].type)
    kinds = graph.node[2].attribute.add(name="tps", type=onnx.AttributeProto.TYPE_PROTOS)
    kinds.type_protos.append(graph.input[1].type)
    for dtype in (np.int64, np.int32, np.float64, np.uint64):
        name, array = np.dtype(dtype).name, np.ones(2, dtype)
        typed = onnx.helper.make_tensor(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [2], array)
        graph.initializer.append(typed)
    graph.initializer.append(onnx.helper.make_tensor("string", onnx.TensorProto.STRING, [1], [b"\xff"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "raw"))
    device = model.configuration.add(name="two", num_devices=2)
    device.device.extend(["cpu:0", "cpu:1"])
    placed = first.device_configurations.add(configuration_id="two", pipeline_stage=1)
    sharding = placed.sharding_spec.add(tensor_name="x")
    sharding.device.extend([0, 1])
    sharding.index_to_device_group_map.add(key=0, value=[0, 1])
    sharding.sharded_dim.add(axis=0).simple_sharding.add(dim_value=4, num_shards=2)
    sharding.sharded_dim.add(axis=1).simple_sharding.add(dim_param="N", num_shards=2)
    return model


def _fields(message: Message) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        yield message.DESCRIPTOR.name, field.name
        if field.type == field.TYPE_MESSAGE:
            for inner in value if hasattr(value, "append") else [value]:
                yield from _fields(inner)


def _definitions(descriptor: object, seen: dict[str, set[tuple[str, str]]]) -> None:
    if descriptor.full_name in seen:
        return
    seen[descriptor.full_name] = {(descriptor.name, field.name) for field in descriptor.fields}
    for field in descriptor.fields:
        if field.message_type is not None:
            _definitions(field.message_type, seen)


def _saved(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    with stage(folder / "out.onnx", force=True) as staging:
        staging.commit(load(folder / "in.onnx"))
    return onnx.ModelProto.FromString((folder / "out.onnx").read_bytes())


def _drop_empty_texts(message: Message) -> None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if hasattr(value, "append") else [value]:
                _drop_empty_texts(inner)
        elif isinstance(value, str) and value == "":
            message.ClearField(field.name)


def _sparse(model: onnx.ModelProto) -> onnx.SparseTensorProto:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "lonely"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "lonely.at"))
    return sparse


def _newer(model: onnx.ModelProto) -> None:
    # Field 1000 of the first node, as a later version of ONNX might define it.
    content = model.graph.node[0].SerializeToString() + b"\xc2\x3e\x01x"
    model.graph.node[0].ParseFromString(content)


REFUSED: dict[str, tuple[Change, str]] = {
    "training_info": (lambda m: m.training_info.add().algorithm.node.add(op_type="Relu"), "training_info"),
    "sparse initializer": (lambda m: m.graph.sparse_initializer.append(_sparse(m)), "sparse initializer 'lonely'"),
    "sparse initializer of a subgraph": (
        lambda m: m.graph.node[3].attribute[0].g.sparse_initializer.append(_sparse(m)),
        "sparse initializer 'lonely' in attribute 'then_branch'",
    ),
    "sparse attribute": (
        lambda m: m.graph.node[2].attribute.add(name="sp", type=11, sparse_tensor=_sparse(m)),
        "sparse tensor in attribute 'sp'",
    ),
    "sparse attributes": (
        lambda m: m.graph.node[2].attribute.add(name="sps", type=12, sparse_tensors=[_sparse(m)]),
        "sparse tensor in attribute 'sps'",
    ),
    "map type": (
        lambda m: m.graph.input.add(name="map").type.map_type.MergeFrom(
            onnx.TypeProto.Map(key_type=7, value_type=m.graph.input[0].type)
        ),
        "map type of value 'map'",
    ),
    "map type in a sequence": (
        lambda m: (
            m.graph.node[2]
            .attribute[11]
            .type_protos[0]
            .sequence_type.elem_type.map_type.MergeFrom(
                onnx.TypeProto.Map(key_type=7, value_type=m.graph.input[0].type)
            )
        ),
        "map type of attribute 'tps'",
    ),
    "opaque type": (
        lambda m: m.graph.node[2].attribute[10].tp.opaque_type.MergeFrom(onnx.TypeProto.Opaque(domain="d", name="n")),
        "opaque type of attribute 'tp'",
    ),
    "segment": (
        lambda m: m.graph.initializer[0].segment.MergeFrom(onnx.TensorProto.Segment(begin=0, end=1)),
        "segment of initializer 'w'",
    ),
    "annotation of nothing": (
        lambda m: m.graph.quantization_annotation.add(tensor_name="nothing"),
        "quantization annotation of 'nothing'",
    ),
    "annotation given twice": (
        lambda m: m.graph.quantization_annotation.add(tensor_name="a"),
        "quantization annotation 'a'.*twice",
    ),
    "opset given twice": (lambda m: m.opset_import.add(domain="other", version=3), "opset import.*other"),
    "metadata given twice": (lambda m: m.metadata_props.add(key="key", value="2"), "duplicate keys in metadata_props"),
    "graph metadata given twice": (
        lambda m: m.graph.metadata_props.add(key="graph", value="2"),
        "of the graph 'graph', .*twice",
    ),
    "node metadata given twice": (
        lambda m: m.graph.node[0].metadata_props.add(key="node", value="2"),
        "'node', .*twice",
    ),
    "attribute given twice": (
        lambda m: m.graph.node[2].attribute.append(m.graph.node[2].attribute[0]),
        "Attribute 'i' appeared",
    ),
    "initializer given twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "w initializer name is not unique",
    ),
    "initializer without name": (lambda m: m.graph.initializer[0].ClearField("name"), "Field 'name' of"),
    "function given twice": (lambda m: m.functions.append(m.functions[0]), "f::body::v2"),
    "device configuration in an old IR": (lambda m: setattr(m, "ir_version", 10), "device configuration 'two'"),
    "attribute without type": (lambda m: m.graph.node[2].attribute[0].ClearField("type"), "Field 'type' of"),
    "field of a later version": (_newer, "field 1000 of a NodeProto, .* does not know"),
}


def test_every_field_is_kept_or_named(tmp_path: Path) -> None:
    full = _full()
    present = set(_fields(full))
    definitions: dict[str, set[tuple[str, str]]] = {}
    _definitions(onnx.ModelProto.DESCRIPTOR, definitions)
    external = {("TensorProto", "external_data"), ("TensorProto", "data_location")}
    refused_messages = {"TrainingInfoProto", "SparseTensorProto", "Map", "Opaque", "Segment"}
    refused_fields = {
        ("ModelProto", "training_info"), ("GraphProto", "sparse_initializer"), ("AttributeProto", "sparse_tensor"),
        ("AttributeProto", "sparse_tensors"), ("TypeProto", "map_type"), ("TypeProto", "opaque_type"),
        ("TensorProto", "segment"),
    }  # fmt: skip
    defined = set().union(*definitions.values())
    missing = {
        (message, field)
        for message, field in defined - present - external - refused_fields
        if message not in refused_messages
    }
    assert not missing, "a field that ONNX defines is neither in FULL nor refused"
    assert present <= set(_fields(_saved(full, tmp_path)))


def test_saved_model_says_the_same(tmp_path: Path) -> None:
    full = _full()
    saved = _saved(full, tmp_path)
    # onnx-ir also writes down the types of initializers, and sorts metadata.
    for model in (full, saved):
        del model.graph.value_info[:]
        for attribute in model.graph.node[3].attribute:
            del attribute.g.value_info[:]
    full.metadata_props.sort(key=lambda entry: entry.key)
    _drop_empty_texts(full)
    _drop_empty_texts(saved)
    assert str(saved) == str(full)


def test_type_information_is_kept(tmp_path: Path) -> None:
    saved = _saved(_full(), tmp_path)
    assert {info.name for info in _full().graph.value_info} <= {info.name for info in saved.graph.value_info}
    assert [info.name for info in saved.functions[0].value_info] == ["n"]


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_lost_is_named(what: str, tmp_path: Path) -> None:
    model = _full()
    change, message = REFUSED[what]
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message):
        from_proto(model)


def test_copy_does_not_ask_what_a_conversion_would_lose(tmp_path: Path) -> None:
    model = _full()
    model.graph.sparse_initializer.append(_sparse(model))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with stage(tmp_path / "copy.onnx") as staging:
        staging.commit_copy(guard(tmp_path / "m.onnx"))
    assert (tmp_path / "copy.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_type_information_of_nothing_is_dropped_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = _full()
    model.graph.value_info.add(name="gone").type.CopyFrom(model.graph.input[0].type)
    from_proto(model)
    assert "gone" in caplog.text
