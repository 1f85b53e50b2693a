"""The scopes of a model: its graph and its function bodies."""

import onnx_ir as ir

from onnxq.functions import DOMAIN


def scopes(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """The graph and the function bodies, but for those of onnxq's own functions, which no pass looks into."""
    return [model.graph, *(each for each in model.functions.values() if each.domain != DOMAIN)]


def nodes(model: ir.Model) -> list[ir.Node]:
    """All nodes in these scopes, those of subgraphs among them."""
    return [node for scope in scopes(model) for node in ir.traversal.RecursiveGraphIterator(scope)]
