"""Rounded activations in the form of ONNX 1.23: pairs of Q and DQ in the place of onnxq's functions."""

import re

import onnx_ir as ir

from onnxq.formats import Format
from onnxq.functions import DOMAIN, format_of
from onnxq.model.constants import constant_ints
from onnxq.model.scopes import nodes
from onnxq.passes.edit import Editor

_ROUNDING = re.compile(r"QuantizeDequantize(.+?)(Asymmetric)?")


def use_standard_pairs(model: ir.Model) -> None:
    """Put pairs in the place of functions, where ONNX has a tensor type for the format.

    Scales of rows become those of blocks as long as a row; where no shape says how long a row is, the function stays.
    """
    editor = Editor(model)
    for node in nodes(model):
        match = _ROUNDING.fullmatch(node.op_type) if node.domain == DOMAIN else None
        if match is not None and (kind := format_of(match.group(1))).onnx_type is not None:
            _replace(editor, node, kind)


def _replace(editor: Editor, node: ir.Node, kind: Format) -> None:
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or scale is None or (placed := _placed(scale, x)) is None:
        return
    codes = ir.DataType[str(kind.onnx_type)]
    scale, attributes = placed
    read = [x, scale]
    types = {"output_dtype": int(codes)}
    if len(node.inputs) > 2:
        # The zero point says what type the codes have.
        result = ir.Value(name=f"{x.name}_zero_point", type=ir.TensorType(codes))
        read.append(editor.before(node, ("", "Cast"), [node.inputs[2]], {"to": int(codes)}, result))
        types = {}
    result = ir.Value(name=f"{x.name}_quantized", type=ir.TensorType(codes), shape=x.shape)
    quantized = editor.before(node, ("", "QuantizeLinear"), read, attributes | types, result)
    dtype = node.attributes["dtype"].as_int()
    editor.replace(node, ("", "DequantizeLinear"), [quantized, *read[1:]], attributes | {"output_dtype": dtype})


def _placed(scale: ir.Value, x: ir.Value) -> tuple[ir.Value, dict[str, int]] | None:
    """Scales as a pair reads them and the attributes that say where they lie; None where that cannot be said."""
    maker = scale.producer()
    if maker is None:
        return scale, {} if scale.shape == () else {"axis": -1}
    if maker.op_type == "Unsqueeze":
        # Of scales of channels with axes behind them.
        axes = constant_ints(maker.inputs[1])
        return None if axes is None or maker.inputs[0] is None else (maker.inputs[0], {"axis": -1 - len(axes)})
    row = x.shape[-1] if x.shape else None
    return (scale, {"axis": -1, "block_size": row}) if isinstance(row, int) else None
