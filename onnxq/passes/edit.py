"""Small edits of a graph: new constants and nodes with names of their own, in the right scope."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxq.model.scopes import scopes

Attributes = Mapping[str, int | list[int]]
"""Of a new node, by name."""


class Editor:
    """Adds constants and nodes to a model; every name it gives is new."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str | None] = set()
        # onnx-ir keeps the nodes of a function in a graph whose initializers no file can hold.
        self._bodies = [scope.graph for scope in scopes(model) if isinstance(scope, ir.Function)]
        for scope in scopes(model):
            self._take(scope)
            for node in ir.traversal.RecursiveGraphIterator(scope, enter_graph=self._take):
                self._taken.add(node.name)
                self._taken.update(value.name for value in node.outputs)

    def _take(self, scope: ir.Graph | ir.Function | ir.GraphView) -> None:
        self._taken.update(value.name for value in scope.inputs)
        if isinstance(scope, ir.Graph):
            self._taken.update(scope.initializers)

    def fresh(self, name: str) -> str:
        """`name`, with a number behind it where the model has that name already."""
        candidate, number = name, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    def constant(self, tensor: ir.TensorProtocol, owner: ir.Value) -> ir.Value:
        """A constant beside `owner`: an initializer of its graph, or a Constant node where a function body holds it."""
        graph = owner.graph
        if isinstance(graph, ir.Graph) and not any(graph is body for body in self._bodies):
            value = ir.Value(
                name=tensor.name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            graph.register_initializer(value)
            return value
        node = ir.node("Constant", [], {"value": tensor}, name=self.fresh(f"{tensor.name}_constant"))
        node.outputs[0].name = tensor.name
        producer = owner.producer()
        if producer is None:
            raise ValueError(f"'{owner.name}' is not a constant")
        producer.prepend(node)
        return node.outputs[0]

    def before(
        self,
        reader: ir.Node,
        operator: tuple[str, str],
        inputs: Sequence[ir.Value | None],
        attributes: Attributes,
        result: ir.Value,
    ) -> ir.Value:
        """Put a node right before `reader`.

        Args:
            reader: The node that will read the result.
            operator: Domain and type.
            inputs: Of the new node.
            attributes: Of the new node.
            result: A value whose name, type and shape the new node's output takes, the name made unique.
        """
        name = self.fresh(result.name or operator[1])
        node = ir.Node(*operator, inputs, _attributes(attributes), num_outputs=1, name=name)
        output = node.outputs[0]
        output.name, output.type, output.shape = name, result.type, result.shape
        reader.prepend(node)
        return output

    def behind(
        self,
        value: ir.Value,
        operator: tuple[str, str],
        inputs: Sequence[ir.Value | None],
        attributes: Attributes,
        results: Sequence[ir.Value],
    ) -> Sequence[ir.Value]:
        """Put a node right behind the one that makes `value`, or at the beginning of a graph whose input it is.

        Args:
            value: Of a graph.
            operator: Domain and type.
            inputs: Of the new node; none is made later than `value`.
            attributes: Of the new node.
            results: Values whose names, types and shapes its outputs take, the names made unique.
        """
        name = self.fresh(results[0].name or operator[1])
        node = ir.Node(*operator, inputs, _attributes(attributes), num_outputs=len(results), name=name)
        for output, result in zip(node.outputs, results, strict=True):
            output.name = name if output is node.outputs[0] else self.fresh(result.name or operator[1])
            output.type, output.shape = result.type, result.shape
        producer = value.producer()
        if producer is not None:
            producer.append(node)
        elif isinstance(value.graph, ir.Graph):
            value.graph.insert_before(value.graph[0], node)
        else:
            raise ValueError(value.name)
        return node.outputs

    def replace(
        self,
        node: ir.Node,
        operator: tuple[str, str],
        inputs: Sequence[ir.Value | None],
        attributes: Attributes,
    ) -> None:
        """Put another operator in the place of a node; it keeps the node's name, outputs, place and metadata."""
        before = [each for each in node.inputs if each is not None]
        node.domain, node.op_type = operator
        node.resize_inputs(0)
        node.resize_inputs(len(inputs))
        for at, value in enumerate(inputs):
            node.replace_input_with(at, value)
        node.attributes.clear()
        for attribute in _attributes(attributes):
            node.attributes[attribute.name] = attribute
        for value in before:
            if value not in inputs:
                drop_unused(value)


def describe(node: ir.Node, text: str) -> None:
    """Add a line to what a graph viewer shows about a node."""
    node.doc_string = f"{node.doc_string}\n{text}" if node.doc_string else text


def _attributes(attributes: Attributes) -> list[ir.Attr]:
    return [ir.AttrInt64(k, v) if isinstance(v, int) else ir.AttrInt64s(k, v) for k, v in attributes.items()]


def add_behind(editor: Editor, value: ir.Value, term: ir.Value) -> ir.Node:
    """Add something to a value for all who read it; the sum takes its name, by which others know it.

    Returns:
        The Add, whose second input is `term`.
    """
    total = ir.Value(name=value.name, type=value.type, shape=value.shape)
    (total,) = editor.behind(value, ("", "Add"), [value, term], {}, [total])
    node = total.producer()
    if node is None:
        raise ValueError(value.name)
    ir.convenience.replace_all_uses_with(value, total, replace_graph_outputs=True)
    node.replace_input_with(0, value)
    value.name, total.name = total.name, value.name
    return node


def earliest(nodes: Iterable[ir.Node]) -> ir.Node:
    """Of some nodes of one graph the one that stands first."""
    several = list(nodes)
    order = list(several[0].graph or several)
    return min(several, key=order.index)


def take_back(adding: ir.Node) -> None:
    """Undo `add_behind`."""
    (value, term), total = adding.inputs[:2], adding.outputs[0]
    if value is None or term is None or adding.graph is None:
        raise ValueError(adding.name)
    ir.convenience.replace_all_uses_with(total, value, replace_graph_outputs=True)
    value.name = total.name
    adding.graph.remove(adding, safe=True)
    drop_unused(term)


def drop_unused(value: ir.Value) -> None:
    """Remove a constant that nobody reads any more, with the nodes between it and its last readers."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is None:
        if isinstance(value.graph, ir.Graph) and value.name is not None and not value.is_graph_input():
            value.graph.initializers.pop(value.name, None)
        return
    if any(output.uses() or output.is_graph_output() for output in producer.outputs):
        return
    upper = [each for each in producer.inputs if each is not None]
    if producer.graph is not None:
        producer.graph.remove(producer, safe=True)
    for each in upper:
        if each.is_initializer() or each.producer() is not None:
            drop_unused(each)
