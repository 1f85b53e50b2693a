"""What a model may hold that onnx-ir would drop without a word: found here, by name, before anything is converted."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from onnxq.model.tensors import graphs_in, walk

_logger = logging.getLogger(__name__)


def losses(model: onnx.ModelProto) -> list[str]:
    """Everything that a conversion could not keep, each as a phrase that names it; empty for most models."""
    return list(_in_model(model))


def _in_model(model: onnx.ModelProto) -> Iterator[str]:
    if model.training_info:
        yield f"training_info ({len(model.training_info)} entries)"
    yield from _repeated((opset.domain for opset in model.opset_import), "opset import of domain")
    yield from _repeated((entry.key for entry in model.metadata_props), "metadata property")
    if model.configuration and model.ir_version < 11:
        yield f"device configuration '{model.configuration[0].name}', which needs IR version 11"
    identifiers = (f"{f.domain}::{f.name}" + (f":{f.overload}" if f.overload else "") for f in model.functions)
    yield from _repeated(identifiers, "function")
    yield from _unknown_fields(model)
    for where, tensor in walk(model):
        if tensor.HasField("segment"):
            yield f"segment of {where}"
    yield from _in_graph(model.graph, model.ir_version)
    for function in model.functions:
        where = f" of function '{function.domain}::{function.name}'"
        yield from _in_nodes(function.node, where, model.ir_version)
        yield from _repeated((*function.attribute, *(a.name for a in function.attribute_proto)), f"attribute{where}")
        for info in function.value_info:
            yield from _in_type(info.type, f"value '{info.name}'{where}")


def _in_graph(graph: onnx.GraphProto, ir_version: int, where: str = "") -> Iterator[str]:
    for sparse in graph.sparse_initializer:
        yield f"sparse initializer '{sparse.values.name}'{where}; make it dense"
    if any(not tensor.name for tensor in graph.initializer):
        yield f"an initializer without a name{where}"
    yield from _repeated((tensor.name for tensor in graph.initializer), f"initializer{where}")
    yield from _repeated((entry.key for entry in graph.metadata_props), f"metadata property{where or ' of the graph'}")
    values = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    values.update(name for node in graph.node for name in node.output)
    yield from _repeated((a.tensor_name for a in graph.quantization_annotation), f"quantization annotation{where}")
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name not in values:
            yield f"quantization annotation of '{annotation.tensor_name}'{where}, which is no value of its graph"
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield from _in_type(info.type, f"value '{info.name}'{where}")
    if stale := [info.name for info in graph.value_info if info.name not in values and "::" not in info.name]:
        # Exporters often leave these behind; they say nothing about the model, so they only deserve a line.
        _logger.warning("type information of %d values that do not exist is dropped: %s", len(stale), stale[:3])
    yield from _in_nodes(graph.node, where, ir_version)


def _in_nodes(nodes: Iterable[onnx.NodeProto], where: str, ir_version: int) -> Iterator[str]:
    for node in nodes:
        here = f" of node '{node.name}' ({node.op_type}){where}"
        if len(node.attribute) > 1:
            yield from _repeated((attribute.name for attribute in node.attribute), f"attribute{here}")
        if len(node.metadata_props) > 1:
            yield from _repeated((entry.key for entry in node.metadata_props), f"metadata property{here}")
        if node.device_configurations and ir_version < 11:
            yield f"device configuration{here}, which needs IR version 11"
        for attribute in node.attribute:
            yield from _in_attribute(attribute, here, ir_version)


def _in_attribute(attribute: onnx.AttributeProto, where: str, ir_version: int) -> Iterator[str]:
    here = f"attribute '{attribute.name}'{where}"
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        yield f"sparse tensor in {here}; make it dense"
    if attribute.type == onnx.AttributeProto.UNDEFINED and not attribute.ref_attr_name:
        yield f"{here}, which has no type"
    for graph in graphs_in(attribute):
        yield from _in_graph(graph, ir_version, f" in {here}")
    for kind in (*((attribute.tp,) if attribute.HasField("tp") else ()), *attribute.type_protos):
        yield from _in_type(kind, here)


def _in_type(kind: onnx.TypeProto, where: str) -> Iterator[str]:
    match kind.WhichOneof("value"):
        case "map_type":
            yield f"map type of {where}"
        case "opaque_type":
            yield f"opaque type of {where}"
        case "sequence_type":
            yield from _in_type(kind.sequence_type.elem_type, where)
        case "optional_type":
            yield from _in_type(kind.optional_type.elem_type, where)


def _repeated(names: Iterable[str], what: str) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} '{name}', which is given twice"
        seen.add(name)


def _unknown_fields(model: onnx.ModelProto) -> Iterator[str]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.DiscardUnknownFields()
    # Looking at every message takes long; most models have none, and their size says so at once.
    if copy.ByteSize() != model.ByteSize():
        for message in _messages(model):
            for unknown in UnknownFieldSet(message):
                yield (
                    f"field {unknown.field_number} of a {message.DESCRIPTOR.name}, which onnx {onnx.__version__} "
                    "does not know; the model was written by a newer version"
                )


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if isinstance(value, Sequence) else (value,):
                yield from _messages(inner)
