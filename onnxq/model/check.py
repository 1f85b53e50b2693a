"""onnx.checker without external data: the checker would open every file that the model names, by path."""

from collections.abc import Iterable, Iterator, Sequence

import onnx
from google.protobuf.message import EncodeError, Message  # type: ignore[import-untyped]
from onnx import checker

from onnxq.errors import ModelError
from onnxq.model.operators import MICROSOFT
from onnxq.model.tensors import graphs_in, walk

# onnxruntime has it in ONNX's own domain, where ONNX knows none of that name; onnxruntime-genai's builder writes it.
_ONNXRUNTIME_ONLY = "SimplifiedLayerNormalization"


def check(model: onnx.ModelProto, name: str) -> None:
    """Check the structure of a model: operators, names, order of nodes, types of attributes.

    No file is opened and no weight is read: the checker gets a copy in which external tensors are empty.

    Args:
        model: the parsed model; its tensors were checked before.
        name: the model in messages, as `'model.onnx'`.

    Raises:
        ModelError: the model is not valid ONNX.
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
    # Not in functions, where it makes onnxruntime 1.31 crash.
    for node in _all_nodes(copy.graph.node):
        if node.op_type == _ONNXRUNTIME_ONLY and node.domain in ("", "ai.onnx"):
            # The checker passes over domains that it does not know.
            node.domain = MICROSOFT
            copy.opset_import.add(domain=node.domain, version=1)
    try:
        checker.check_model(copy)
    except (checker.ValidationError, EncodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name} is not a valid ONNX model: {reason_of(error)}") from error


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, with those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in graphs_in(attribute):
                yield from _all_nodes(graph.node)


def check_text(model: onnx.ModelProto, name: str) -> None:
    """Refuse names and texts that are not UTF-8: they come back as bytes, which nothing else expects.

    Raises:
        ModelError: a string of the model is not UTF-8.
    """
    if (field := _broken_text(model)) is not None:
        raise ModelError(f"{name} is damaged: a '{field}' in it is not UTF-8 text")


def _broken_text(message: Message) -> str | None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if isinstance(value, bytes) or (not isinstance(value, str) and any(isinstance(v, bytes) for v in value)):
                return str(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if isinstance(value, Sequence) else (value,):
                if (broken := _broken_text(inner)) is not None:
                    return broken
    return None


def reason_of(error: BaseException) -> str:
    """The first line of the error that all others came from: onnx-ir wraps one around each level, PyTorch pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
