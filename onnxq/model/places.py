"""Every place of an onnx_ir model where a tensor stands, so that one tensor can be put in for another."""

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxq.model.scopes import subgraphs

Replace = Callable[[ir.TensorProtocol], ir.TensorProtocol]


def replace_tensors(model: ir.Model, replace: Replace, replace_in_functions: Replace | None = None) -> None:
    """Put `replace(tensor)` in the place of each tensor: initializers and attributes, in subgraphs and functions too.

    Args:
        model: changed in place.
        replace: may give back the tensor it got, which leaves the place alone.
        replace_in_functions: used instead in function bodies, where given.
    """
    for graph in graphs(model.graph):
        _replace_in_graph(graph, replace)
    for function in model.functions.values():
        chosen = replace_in_functions or replace
        for name, attribute in list(function.attributes.items()):
            if (new := _replaced(attribute, chosen)) is not attribute:
                function.attributes[name] = new
        for graph in graphs(function.graph):
            _replace_in_graph(graph, chosen)


def graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graph, and all graphs inside its nodes."""
    yield graph
    for node in graph:
        for inner in subgraphs(node):
            yield from graphs(inner)


def _replace_in_graph(graph: ir.Graph, replace: Replace) -> None:
    for value in graph.initializers.values():
        if (old := value.const_value) is not None and (new := replace(old)) is not old:
            value.const_value = new
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if (new_attribute := _replaced(attribute, replace)) is not attribute:
                node.attributes[name] = new_attribute


def _replaced(attribute: ir.Attr, replace: Replace) -> ir.Attr:
    if attribute.is_ref() or attribute.value is None:
        return attribute
    if attribute.type == ir.AttributeType.TENSOR:
        old = attribute.as_tensor()
        new = replace(old)
        return attribute if new is old else ir.AttrTensor(attribute.name, new, doc_string=attribute.doc_string)
    if attribute.type == ir.AttributeType.TENSORS:
        old_tensors = attribute.as_tensors()
        new_tensors = [replace(tensor) for tensor in old_tensors]
        if any(new is not old for new, old in zip(new_tensors, old_tensors, strict=True)):
            return ir.AttrTensors(attribute.name, new_tensors, doc_string=attribute.doc_string)
    return attribute
