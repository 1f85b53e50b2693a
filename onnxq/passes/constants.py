"""Other numbers for the constants of a model: weights where they stand, operands as constants of their own."""

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.model.constants import constant_array, trace, undo_views
from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor, drop_unused
from onnxq.passes.sink import Sink


def store_weight(weight: Weight, array: np.ndarray, sink: Sink) -> None:
    """Let a weight with one reader hold other numbers.

    Args:
        weight: Its name stays. What a conversion to float32 stands behind is stored in float32 where float16 cannot
            hold the numbers.
        array: As operators read it; of another shape only where the weight is not reshaped on its way.
        sink: Takes the bytes.

    Raises:
        ModelError: A number leaves the range of the type in which operators read the weight.
    """
    check_range(array, weight.dtype, f"weight '{weight.name}'")
    dims = _stored_dims(weight, array.shape)
    exact = undo_views(array.astype(weight.dtype.numpy()), dims, weight.steps)
    stored = exact.astype(weight.tensor.dtype.numpy())
    fits = weight.dtype == weight.tensor.dtype or np.array_equal(stored.astype(exact.dtype), exact)
    dtype = weight.tensor.dtype if fits else weight.dtype
    tensor = sink.append(weight.tensor.name or "", dtype, dims, [stored if fits else exact])
    producer = weight.source.producer()
    if producer is None:
        weight.source.const_value = tensor
    else:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    weight.source.type, weight.source.shape = ir.TensorType(dtype), ir.Shape(dims)
    for value in (node.outputs[0] for site in weight.sites for node in site.chain):
        if not fits:
            value.type = ir.TensorType(dtype)
        if array.shape != weight.shape:
            value.shape = None


def _stored_dims(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a weight is stored, where operators read it in this one."""
    if shape == weight.shape:
        return tuple(weight.tensor.shape.numpy())
    for operator, numbers in reversed(weight.steps):
        if operator == "Transpose":
            shape = tuple(shape[axis] for axis in np.argsort(numbers))
        elif operator == "Reshape":
            raise ValueError(weight.name)
    return shape


def give_operand(node: ir.Node, index: int, array: np.ndarray, what: str, editor: Editor, sink: Sink) -> None:
    """Give a node a constant of its own in the place of one that it reads, of the same type.

    Raises:
        ModelError: A number leaves the range of that type.
    """
    old = node.inputs[index]
    if old is None:
        raise ValueError(node.name)
    source, dtype = trace(old)[0], ir.DataType.from_numpy(constant_array(old).dtype)
    check_range(array, dtype, f"'{old.name}'")
    new = add_constant(f"{source.name}_{what}", array.astype(dtype.numpy()), source, editor, sink)
    node.replace_input_with(index, new)
    drop_unused(old)


def add_constant(name: str, array: np.ndarray, owner: ir.Value, editor: Editor, sink: Sink) -> ir.Value:
    """A new constant beside `owner`, of the type of an array, its name made unique."""
    stored = np.ascontiguousarray(array)
    tensor = sink.append(editor.fresh(name), ir.DataType.from_numpy(stored.dtype), stored.shape, [stored])
    return editor.constant(tensor, owner)


def check_range(array: np.ndarray, dtype: ir.DataType, what: str) -> None:
    """Refuse numbers that a type cannot hold.

    Raises:
        ModelError: A finite number would become infinite.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(dtype.numpy()).astype(np.float32)).all()
    if not finite and np.isfinite(array).all():
        raise ModelError(f"{what} would leave the range of {dtype.name}: leave out this step")
