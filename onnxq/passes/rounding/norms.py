"""Fold BatchNormalization into the convolution before it, so that the convolution puts out what is rounded."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import FLOAT_TYPES
from onnxq.model.operators import is_op
from onnxq.passes.edit import Editor, drop_unused
from onnxq.passes.sink import Sink

# Of BatchNormalization (ONNX opset 15).
_EPSILON = 1e-5


def fold_norms(model: ir.Model, convolutions: Iterable[ir.Node], sink: Sink) -> int:
    """Fold the normalization behind each convolution, where both have constant weights and nobody else reads between.

    Args:
        model: Edited in place. A convolution's output takes the name of the normalization's.
        convolutions: Nodes of the main graph.
        sink: Takes the new weights.

    Returns:
        How many were folded.
    """
    editor, folded = Editor(model), 0
    for conv in convolutions:
        if (norm := _norm_behind(conv)) is not None:
            _fold(editor, conv, norm, sink)
            folded += 1
    return folded


def _norm_behind(conv: ir.Node) -> ir.Node | None:
    """The normalization that can be folded into a convolution."""
    result = conv.outputs[0]
    if not is_op(conv, "Conv") or result.is_graph_output() or len(result.uses()) != 1:
        return None
    (use,) = result.uses()
    norm = use.node
    if not is_op(norm, "BatchNormalization") or use.idx or norm.graph is not conv.graph or len(norm.outputs) != 1:
        return None
    training, weight = norm.attributes.get("training_mode"), conv.inputs[1]
    if weight is None or len(weight.uses()) != 1 or (training is not None and training.value):
        return None
    constants = [value for value in (*conv.inputs[1:], *norm.inputs[1:]) if value is not None]
    return norm if all(_is_own(value) for value in constants) else None


def _is_own(value: ir.Value) -> bool:
    """An initializer of floats that no caller can replace."""
    return value.is_initializer() and not value.is_graph_input() and value.dtype in FLOAT_TYPES


def _fold(editor: Editor, conv: ir.Node, norm: ir.Node, sink: Sink) -> None:
    weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
    if weight is None:
        raise ValueError(conv.name)
    gamma, beta, mean, variance = (_array(value) for value in norm.inputs[1:])
    factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", _EPSILON))
    filters = _array(weight)
    offset = (_array(bias) - mean if bias is not None else -mean) * factor + beta
    # In the place of the old one: rules of a recipe know weights by their names.
    weight.const_value = _stored(
        sink, str(weight.name), weight, filters * factor.reshape(-1, *[1] * (filters.ndim - 1))
    )
    new = editor.constant(_stored(sink, editor.fresh(f"{weight.name}_bias"), weight, offset), weight)
    conv.resize_inputs(3)
    conv.replace_input_with(2, new)
    result, kept = norm.outputs[0], conv.outputs[0]
    name, read = result.name, [value for value in (bias, *norm.inputs[1:]) if value is not None]
    result.replace_all_uses_with(kept, replace_graph_outputs=True)
    if norm.graph is not None:
        norm.graph.remove(norm, safe=True)
    kept.name = name
    for value in read:
        drop_unused(value)


def _array(value: ir.Value | None) -> np.ndarray:
    tensor = None if value is None else value.const_value
    if tensor is None:
        raise ValueError(value)
    return tensor.numpy().astype(np.float64)


def _stored(sink: Sink, name: str, like: ir.Value, array: np.ndarray) -> ir.TensorProtocol:
    """A tensor of the type of `like`."""
    dtype = like.dtype or ir.DataType.FLOAT
    data = np.ascontiguousarray(array.astype(dtype.numpy())).reshape(-1)
    return sink.append(name, dtype, array.shape, [data.view(np.uint8)])
