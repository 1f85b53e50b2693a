"""Constants of a graph: initializers, Constant nodes, and what a chain of reshaping nodes makes of them."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.model.operators import is_op
from onnxq.model.scopes import subgraphs

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Nodes that only show the same numbers differently.
_VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze")

View = tuple[str, tuple[int, ...]]
"""One normalised step of a chain: the operator and its permutation, target type or shape."""


def constants(scope: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """Initializers and outputs of Constant nodes of a graph and its subgraphs."""
    if isinstance(scope, ir.Graph):
        yield from scope.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(scope):
        if is_op(node, "Constant"):
            yield from node.outputs
        for graph in subgraphs(node):
            yield from graph.initializers.values()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output, without reading it; None for anything else."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if is_op(producer, "Constant"):
        attribute = producer.attributes.get("value")
        if attribute is not None and not attribute.is_ref():
            return attribute.as_tensor()
    return None


def fixed_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """As `constant_tensor`, but None where a caller may give another tensor: the default of a graph input."""
    return None if value is None or value.is_graph_input() else constant_tensor(value)


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a small constant, for instance a shape; None where it is no constant."""
    producer = None if value is None else value.producer()
    if is_op(producer, "Constant"):
        listed = producer.attributes.get("value_ints")
        if listed is not None and not listed.is_ref():
            return tuple(listed.as_ints())
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > 64:
        return None
    return tuple(int(each) for each in tensor.numpy().reshape(-1))


def trace(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Walk up from an operand through nodes that only re-show a constant.

    Returns:
        Where the walk ends, and the nodes passed, the one next to the end first.
    """
    chain: list[ir.Node] = []
    while is_op(node := value.producer(), *_VIEWS):
        upper = node.inputs[0]
        if upper is None or len(node.outputs) != 1:
            break
        chain.insert(0, node)
        value = upper
    return value, tuple(chain)


def views(source: ir.TensorProtocol, chain: Sequence[ir.Node]) -> tuple[View, ...] | None:
    """What the nodes of a chain do to a constant, step by step; None where a step depends on an input."""
    shape, steps = tuple(source.shape.numpy()), []
    for node in chain:
        step = _view(node, shape)
        if step is None:
            return None
        shape = view_shape(shape, [step])
        if step[0] != "Identity":
            steps.append(step)
    return tuple(steps)


def _view(node: ir.Node, shape: tuple[int, ...]) -> View | None:
    match node.op_type:
        case "Identity":
            return "Identity", ()
        case "Transpose":
            perm = node.attributes.get("perm")
            if perm is not None and perm.is_ref():
                return None
            return "Transpose", tuple(perm.as_ints()) if perm else tuple(reversed(range(len(shape))))
        case "Cast":
            to = node.attributes["to"]
            return None if to.is_ref() or ir.DataType(to.value) not in FLOAT_TYPES else ("Cast", (int(to.value),))
        case _:
            return _reshaped(node, shape)


def _reshaped(node: ir.Node, shape: tuple[int, ...]) -> View | None:
    """Reshape, Squeeze and Unsqueeze as the shape they end in."""
    numbers = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if numbers is None:
        return None
    if node.op_type == "Reshape":
        if 0 in numbers and (flag := node.attributes.get("allowzero")) is not None and (flag.is_ref() or flag.value):
            return None
        dims = [shape[at] if dim == 0 and at < len(shape) else dim for at, dim in enumerate(numbers)]
        rest = math.prod(dim for dim in dims if dim != -1)
        dims = [math.prod(shape) // rest if dim == -1 and rest else dim for dim in dims]
    elif node.op_type == "Squeeze":
        drop = {axis % len(shape) for axis in numbers}
        dims = [dim for at, dim in enumerate(shape) if at not in drop]
    else:
        rank = len(shape) + len(numbers)
        at_one, rest_dims = {axis % rank for axis in numbers}, iter(shape)
        dims = [1 if at in at_one else next(rest_dims) for at in range(rank)]
    return ("Reshape", tuple(dims)) if math.prod(dims) == math.prod(shape) else None


def apply_views(array: np.ndarray, steps: Sequence[View]) -> np.ndarray:
    """The array that a chain shows; copied only where it must be."""
    for operator, numbers in steps:
        if operator == "Transpose":
            array = array.transpose(numbers)
        elif operator == "Reshape":
            array = array.reshape(numbers)
        else:
            array = array.astype(ir.DataType(numbers[0]).numpy())
    return array


def undo_views(array: np.ndarray, dims: Sequence[int], steps: Sequence[View]) -> np.ndarray:
    """The array that a chain shows as `array`; a copy in C order, of the type of `array`.

    Args:
        array: In the shape that `apply_views` gives.
        dims: Shape of the result.
        steps: The chain.
    """
    shapes = [view_shape(dims, steps[:count]) for count in range(len(steps))]
    for (operator, numbers), shape in zip(reversed(steps), reversed(shapes), strict=True):
        if operator == "Transpose":
            array = array.transpose(np.argsort(numbers))
        elif operator == "Reshape":
            array = array.reshape(shape)
    return np.ascontiguousarray(array)


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant as its reader sees it; None for anything else."""
    seen = _operand(value)
    return None if seen is None else view_shape(seen[0].shape.numpy(), seen[1])


def constant_array(value: ir.Value | None) -> np.ndarray:
    """A constant as its reader sees it.

    Raises:
        ValueError: It is none.
    """
    if (seen := _operand(value)) is None:
        raise ValueError(value.name if value else value)
    return apply_views(seen[0].numpy(), seen[1])


def _operand(value: ir.Value | None) -> tuple[ir.TensorProtocol, tuple[View, ...]] | None:
    """The tensor under an operand that cannot change, and what the chain between them does; None for anything else."""
    if value is None:
        return None
    source, chain = trace(value)
    tensor = fixed_tensor(source)
    steps = None if tensor is None else views(tensor, chain)
    return None if tensor is None or steps is None else (tensor, steps)


def view_shape(dims: Sequence[int], steps: Sequence[View]) -> tuple[int, ...]:
    """The shape that a chain shows."""
    shape = tuple(dims)
    for operator, numbers in steps:
        if operator == "Transpose":
            shape = tuple(shape[axis] for axis in numbers)
        elif operator == "Reshape":
            shape = numbers
    return shape


def view_dtype(dtype: ir.DataType, steps: Sequence[View]) -> ir.DataType:
    """The type that a chain shows."""
    for operator, numbers in steps:
        if operator == "Cast":
            dtype = ir.DataType(numbers[0])
    return dtype
