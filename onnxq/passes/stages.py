"""In which order layers are quantized one after the other, and what of the graph lies between two of them."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.model.scopes import subgraphs


@dataclass(frozen=True)
class Layer:
    """A weight that is to be quantized.

    Attributes:
        reading: Name of the activation that its statistics are about; None where it needs none.
        nodes: That read the weight, in the main graph or in subgraphs.
    """

    reading: str | None
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Stage:
    """Layers whose inputs do not depend on each other, and the part of the graph from the stage before to them.

    Attributes:
        layers: Their numbers.
        given: Values that the part reads from the parts before it, or inputs of the graph.
        kept: Values that later parts read from this one or from those before it.
        applied: Layers that run in this part.
    """

    layers: tuple[int, ...]
    given: tuple[str, ...]
    kept: tuple[str, ...]
    applied: tuple[int, ...]


def stages(graph: ir.Graph, layers: Sequence[Layer]) -> list[Stage]:
    """Cut a graph at its layers.

    Every value that comes from data has a depth: how many layers with statistics lie one behind another before it. A
    stage is all layers whose input has one depth, and its part of the graph is what has the depth of their input. What
    comes from constants alone belongs to every part that reads it.

    Args:
        graph: The main graph, its nodes in topological order.
        layers: Those without a reading belong to no stage.

    Returns:
        The stages that have layers, the shallowest first.
    """
    running = _running(graph, layers)
    deepening = {node for node, inside in running.items() if any(layers[layer].reading for layer in inside)}
    depths = _depths(graph, deepening)
    readings = {layer.reading for layer in layers if layer.reading}
    wanted = _makers(graph, readings, depths)
    made, before = [], -1
    for depth in sorted({depths[name] for name in readings if name in depths}):
        own = tuple(at for at, each in enumerate(layers) if each.reading and depths.get(each.reading) == depth)
        inside = [node for node, at in wanted.items() if before < at <= depth]
        needed = {str(layers[at].reading) for at in own}.union(*(_reads(node) for node in inside))
        results = {value.name for node in inside for value in node.outputs}
        later = set[str]().union(*(_reads(node) for node, at in wanted.items() if at > depth))
        made.append(
            Stage(
                layers=own,
                given=tuple(sorted(name for name in needed - results if name in depths)),
                kept=tuple(sorted(name for name in later if depths.get(name, depth + 1) <= depth)),
                applied=tuple(sorted({layer for node in inside for layer in running.get(node, ())})),
            )
        )
        before = depth
    return made


def _running(graph: ir.Graph, layers: Sequence[Layer]) -> dict[ir.Node, list[int]]:
    """For nodes of the main graph the layers that run in them."""
    tops = {inner: node for node in graph for inner in (node, *_inner(node))}
    running: dict[ir.Node, list[int]] = {}
    for number, layer in enumerate(layers):
        for node in layer.nodes:
            if node in tops:
                running.setdefault(tops[node], []).append(number)
    return running


def _depths(graph: ir.Graph, deepening: Set[ir.Node]) -> dict[str, int]:
    """The depth of every named value of the main graph that comes from data."""
    depths = {str(value.name): 0 for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        known = [depths[name] for name in _reads(node) if name in depths]
        if known:
            depth = max(known) + (node in deepening)
            depths.update((value.name, depth) for value in node.outputs if value.name)
    return depths


def _makers(graph: ir.Graph, names: Set[str], depths: dict[str, int]) -> dict[ir.Node, int]:
    """The nodes that make some values from data, in order, with their depths."""
    needed, found = set(names), []
    for node in reversed(graph):
        made = [value.name for value in node.outputs if value.name in needed and value.name in depths]
        if made:
            found.append((node, depths[str(made[0])]))
            needed |= _reads(node)
    return dict(reversed(found))


def _inner(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the subgraphs of a node."""
    for graph in subgraphs(node):
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _reads(node: ir.Node) -> set[str]:
    """Names of values that a node or its subgraphs read; those that subgraphs make are among them."""
    return {str(value.name) for each in (node, *_inner(node)) for value in each.inputs if value is not None}
