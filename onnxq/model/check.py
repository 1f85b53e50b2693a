"""onnx.checker without external data: the checker would open every file that the model names, by path."""

from collections.abc import Iterable

import onnx
from onnx import checker

from onnxq.errors import ModelError
from onnxq.model.tensors import walk


def check(model: onnx.ModelProto, name: str) -> None:
    """Check the structure of a model: operators, names, order of nodes, types of attributes.

    No file is opened and no weight is read: the checker gets a copy in which external tensors are empty.

    Args:
        model: the parsed model; its tensors were checked before.
        name: the model in messages, as `'model.onnx'`.

    Raises:
        ModelError: the model is not valid ONNX, or its functions call themselves.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for where, tensor in walk(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            if where.startswith(("values of", "indices of")):
                raise ModelError(f"{name}: {where} is external data, which sparse tensors cannot have")
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.ClearField("dims")
            tensor.dims.append(0)
    try:
        checker.check_model(copy)
    except (checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name} is not a valid ONNX model: {_first_line(error)}") from error
    if name_of_loop := _self_calling(model):
        raise ModelError(f"{name} is not a valid ONNX model: function '{name_of_loop}' calls itself")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _self_calling(model: onnx.ModelProto) -> str | None:
    """The name of a function that reaches itself, if there is one: inlining it would never end."""
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    calls = {
        identifier: {(n.domain, n.op_type, n.overload) for n in _nodes(function.node)} & bodies.keys()
        for identifier, function in bodies.items()
    }
    while free := [identifier for identifier, called in calls.items() if not called & calls.keys()]:
        for identifier in free:
            del calls[identifier]
    return next((f"{domain}::{name}" for domain, name, _ in calls), None)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                found.extend(_nodes(graph.node))
    return found
