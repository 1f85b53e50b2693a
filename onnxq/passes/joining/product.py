"""Make one product of those of a family, whose weights are packed in tiles."""

import re
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.formats.tiled import UNIT_N
from onnxq.functions import DOMAIN
from onnxq.model.constants import constant_tensor
from onnxq.model.labels import together, together_module
from onnxq.passes.constants import add_constant
from onnxq.passes.edit import Attributes, Editor, describe, drop_unused
from onnxq.passes.joining.columns import side_by_side
from onnxq.passes.joining.families import Family
from onnxq.passes.sink import Sink

_TILED = re.compile(r"(MatMul|Linear)(\w+Tiled(?:Asymmetric)?)")
_ALIKE = ("block_size", "dtype", "layout")


def join(editor: Editor, family: Family, sink: Sink) -> str | None:
    """Put one product in the place of those of a family, or say why not.

    Queries, keys and values come out side by side, as `GroupQueryAttention` takes them. Gate and up lie in turn, 16
    columns each, and the product gives silu(gate) * up in the place of what did so before.

    Args:
        editor: Of the model.
        family: All of its weights are packed.
        sink: Takes the bytes.
    """
    products = [node for each in family.results() if (node := each.producer()) is not None]
    if not products or len({node.inputs[0] for node in products}) > 1:
        return "something stands between a product and what it reads, or what reads it"
    first = products[0]
    operator = _TILED.fullmatch(first.op_type) if first.domain == DOMAIN else None
    if operator is None or not all(_is_alike(node, first) for node in products):
        return "their weights are not stored alike, in tiles"
    if family.is_gated and operator[1] == "Linear":
        return "they have a bias"
    operands = [[node.inputs[at] for node in products] for at in range(1, len(first.inputs))]
    sources = [_sources(values) for values in operands]
    if not all(sources):
        return "their scales or biases cannot be one tensor"
    name, module = together([node.name or "" for node in products]), together_module(products)
    text = "\n".join(filter(None, (node.doc_string for node in products)))
    constants = [_constant(editor, family, *each, sink) for each in zip(operands, sources, strict=True)]
    inputs, columns = [first.inputs[0], *constants], sum(_columns(node) for node in products)
    attributes: Attributes = {
        **{each: first.attributes[each].as_int() for each in _ALIKE},
        "shape": [first.attributes["shape"].as_ints()[0], columns],
    }
    if family.is_gated:
        node = family.end
        editor.replace(node, (DOMAIN, f"SwiGLU{operator[2]}"), inputs, attributes)
        node.name = editor.fresh(name) if name else node.name
    else:
        result = ir.Value(name=name, type=ir.TensorType(ir.DataType(first.attributes["dtype"].as_int())))
        dims = first.outputs[0].shape
        result.shape = ir.Shape([*([None, None] if dims is None else dims[:-1]), columns])
        node = _feed(family, editor.before(family.end, (DOMAIN, operator[0]), inputs, attributes, result))
    node.metadata_props.update(module)
    describe(node, text)
    return None


def _is_alike(node: ir.Node, other: ir.Node) -> bool:
    same = (node.domain, node.op_type, len(node.inputs)) == (other.domain, other.op_type, len(other.inputs))
    return same and all(node.attributes[name].value == other.attributes[name].value for name in _ALIKE)


def _columns(node: ir.Node) -> int:
    return node.attributes["shape"].as_ints()[1]


def _sources(values: Sequence[ir.Value | None]) -> list[ir.TensorProtocol]:
    """The constants that one operand of all products comes from; nothing where they cannot be one.

    Scales of one byte are read through `Scale<T>(codes, tensor_scale)`, which can be one where the latter is the same.
    """
    makers = [_scaling(value) for value in values]
    kinds = {None if maker is None else (maker.op_type, _level(maker.inputs[1])) for maker in makers}
    stored = [value if maker is None else maker.inputs[0] for value, maker in zip(values, makers, strict=True)]
    tensors = [tensor for each in stored if (tensor := constant_tensor(each)) is not None]
    alike = len(kinds) == 1 and len({each.dtype for each in tensors}) == 1
    return tensors if alike and len(tensors) == len(values) else []


def _level(value: ir.Value | None) -> object:
    """What tells one scale of scales from another: the number, where it is constant."""
    tensor = constant_tensor(value)
    return value if tensor is None else float(tensor.numpy())


def _scaling(value: ir.Value | None) -> ir.Node | None:
    """The `Scale<T>` that makes a value."""
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.domain == DOMAIN and maker.op_type.startswith("Scale") else None


def _constant(
    editor: Editor, family: Family, values: Sequence[ir.Value | None], parts: Sequence[ir.TensorProtocol], sink: Sink
) -> ir.Value:
    """One operand of all products as one, from the constants that it comes from."""
    arrays = [each.numpy() for each in parts]
    # Of three axes are codes, whose first one is strips; else the last one is columns.
    axis, strip = (0, 1) if arrays[0].ndim == 3 else (arrays[0].ndim - 1, UNIT_N)
    joined = side_by_side(arrays, axis=axis, strip=strip, in_turn=family.is_gated)
    name = together([each.name or "" for each in parts])
    constant = add_constant(name, joined, family.end.outputs[0], editor, sink)
    scaling = _scaling(values[0])
    if scaling is None:
        return constant
    result = ir.Value(name=constant.name, type=ir.TensorType(ir.DataType.FLOAT), shape=constant.shape)
    return editor.before(family.end, (DOMAIN, scaling.op_type), [constant, scaling.inputs[1]], {}, result)


def _feed(family: Family, joined: ir.Value) -> ir.Node:
    """Let an attention read queries, keys and values from one tensor, and give the node that makes it."""
    for at, value in enumerate(family.results()):
        family.end.replace_input_with(at, None if at else joined)
        drop_unused(value)
    node = joined.producer()
    if node is None:
        raise ValueError(joined.name)
    return node
