"""The scopes of a model: its graph, its function bodies, and the subgraphs of nodes."""

from collections.abc import Sequence

import onnx_ir as ir

from onnxq.model.operators import DOMAIN


def scopes(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """The graph and the function bodies, but for those of onnxq's own functions, which no pass looks into."""
    return [model.graph, *(each for each in model.functions.values() if each.domain != DOMAIN)]


def nodes(model: ir.Model) -> list[ir.Node]:
    """All nodes in these scopes, those of subgraphs among them."""
    return [node for scope in scopes(model) for node in ir.traversal.RecursiveGraphIterator(scope)]


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds, without those inside them."""
    return [graph for attribute in node.attributes.values() for graph in _graphs(attribute)]


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
