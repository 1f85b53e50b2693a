"""Put a solved weight into the model: constants for codes and scales, and a dequantizing node before each reader."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.formats import LEARNED_FORMATS, SCALE_TYPES, pack
from onnxq.formats.sparse import half_of, pack_sparse
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.solution import Outliers, Solution
from onnxq.model.sites import Weight
from onnxq.passes.edit import Attributes, Editor, describe, drop_unused
from onnxq.passes.form import grouping, leaves_standard
from onnxq.passes.sink import Sink
from onnxq.passes.target import Target
from onnxq.recipes import QuantSpec


@dataclass(frozen=True)
class Placement:
    """How a quantized weight lies in the file.

    Attributes:
        shape: Of the codes: that of the weight, but a matrix for convolution weights in groups.
        scale_shape: Of scales and zero points.
        axis: Along which scales change, or None for one scale in all.
        block_size: Neighbours along `axis` that share a scale, or None where each has its own.
    """

    shape: tuple[int, ...]
    scale_shape: tuple[int, ...]
    axis: int | None
    block_size: int | None


def placement(weight: Weight, spec: QuantSpec, *, standard: bool) -> Placement:
    """Where scales lie; functions take them in blocks always, `DequantizeLinear` has shorter forms."""
    layout, group = weight.layout, grouping(weight, spec)
    if layout is None:
        raise ValueError(weight.name)
    matrix = layout.flatten and (spec.granularity == "group" or not standard)
    shape = (group.matrix[0], group.matrix[1]) if matrix else weight.shape
    if standard and spec.granularity == "tensor":
        return Placement(shape, (), None, None)
    if standard and spec.granularity == "channel" and (layout.flatten or len(shape) == 2):
        return Placement(shape, (shape[layout.channel],), layout.channel, None)
    axis = 1 if matrix else layout.reduction
    block = group.block or shape[axis]
    groups = tuple(math.ceil(dim / block) if at == axis else dim for at, dim in enumerate(shape))
    one = (1,) * len(shape)
    return Placement(shape, one if spec.granularity == "tensor" else groups, axis, block)


ValueFor = Callable[[ir.Node], ir.Value]
"""Makes, right before a reader, the value that the reader takes in place of the weight."""


def insert(
    editor: Editor, weight: Weight, spec: QuantSpec, solution: Solution, target: Target, sink: Sink, text: str
) -> int:
    """Store a solved weight and let its readers read it dequantized.

    Args:
        editor: Of the model.
        weight: To store.
        spec: How it was quantized.
        solution: Its codes and scales.
        target: Says in which form.
        sink: Takes the bytes.
        text: What a graph viewer shows about the dequantizing nodes.

    Returns:
        Bytes of codes, scales, zero points and outliers.
    """
    standard = leaves_standard(weight, solution.format, spec, target)
    place = placement(weight, spec, standard=standard)
    shelf = Shelf(editor, weight, sink)
    make = (_dequantize_linear if standard else _dequantize_function)(shelf, solution, place)
    outliers = None if solution.outliers is None else _outliers(shelf, solution.outliers)

    def value_for(reader: ir.Node) -> ir.Value:
        dequantized = make(reader)
        if (node := dequantized.producer()) is not None:
            describe(node, text)
        if outliers is not None:
            attributes: Attributes = {"dtype": int(weight.dtype)}
            read, result = [dequantized, *outliers], shelf.result(place.shape)
            dequantized = editor.before(reader, (DOMAIN, "AddOutliers"), read, attributes, result)
        return shelf.in_shape(reader, dequantized)

    connect(weight, value_for)
    return shelf.size_bytes


def connect(weight: Weight, value_for: ValueFor) -> None:
    """Give each reader of a weight its own value, and remove what nobody reads any more."""
    if all(site.steps == weight.steps for site in weight.sites):
        for site in weight.sites:
            operand = site.node.inputs[site.index]
            site.node.replace_input_with(site.index, value_for(site.node))
            if site.transposed_by:
                del site.node.attributes[site.transposed_by]
            if operand is not None:
                drop_unused(operand)
    else:
        # Readers that see a tied weight differently keep the nodes through which they see it.
        for node, index in list(weight.source.uses()):
            node.replace_input_with(index, value_for(node))
        drop_unused(weight.source)


class Shelf:
    """Adds the constants of one weight to the model, and counts their bytes."""

    def __init__(self, editor: Editor, weight: Weight, sink: Sink) -> None:
        self.editor = editor
        self.weight = weight
        self.size_bytes = 0
        self._sink = sink

    def add(self, what: str, dtype: ir.DataType, shape: Sequence[int], data: np.ndarray) -> ir.Value:
        """A constant `<weight>_<what>` with these bytes."""
        chunk = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        name = self.editor.fresh(f"{self.weight.source.name}_{what}")
        self.size_bytes += chunk.size
        return self.editor.constant(self._sink.append(name, dtype, shape, [chunk]), self.weight.source)

    def result(self, shape: Sequence[int]) -> ir.Value:
        """Name, type and shape of a dequantized weight."""
        name = f"{self.weight.source.name}_dequantized"
        return ir.Value(name=name, type=ir.TensorType(self.weight.dtype), shape=ir.Shape(shape))

    def scales(self, stored: ir.Value) -> ir.Value:
        """Name, type and shape of the float32 scales that stored ones mean."""
        return ir.Value(name=stored.name, type=ir.TensorType(ir.DataType.FLOAT), shape=stored.shape)

    def in_shape(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        """A value that was stored as a matrix, in the shape in which its readers want it."""
        shape = self.weight.shape
        if value.shape == shape:
            return value
        dims = self.add("shape", ir.DataType.INT64, [len(shape)], np.asarray(shape, np.int64))
        return self.editor.before(reader, ("", "Reshape"), [value, dims], {}, self.result(shape))


def _dequantize_linear(shelf: Shelf, solution: Solution, place: Placement) -> ValueFor:
    """The standard form."""
    kind, dtype = solution.format, shelf.weight.dtype
    codes_type = ir.DataType[str(kind.onnx_type)]
    scale_type = ir.DataType.from_numpy(solution.scale.dtype)
    inputs = [
        shelf.add("quantized", codes_type, place.shape, pack(solution.codes, kind.bits)),
        shelf.add("scale", scale_type, place.scale_shape, solution.scale),
    ]
    if solution.zero_point is not None:
        inputs.append(shelf.add("zero_point", codes_type, place.scale_shape, pack(solution.zero_point, kind.bits)))
    two_level = _tensor_scale(shelf, solution)
    attributes: dict[str, int | list[int]] = {} if place.axis is None else {"axis": place.axis}
    if place.block_size is not None:
        attributes["block_size"] = place.block_size
    if (ir.DataType.FLOAT if two_level is not None else scale_type) != dtype:
        attributes["output_dtype"] = int(dtype)

    def value_for(reader: ir.Node) -> ir.Value:
        read = list(inputs)
        if two_level is not None:
            # The scales themselves are quantized with one float32 scale.
            result = shelf.scales(inputs[1])
            read[1] = shelf.editor.before(reader, ("", "DequantizeLinear"), [inputs[1], two_level], {}, result)
        return shelf.editor.before(reader, ("", "DequantizeLinear"), read, attributes, shelf.result(place.shape))

    return value_for


def _dequantize_function(shelf: Shelf, solution: Solution, place: Placement) -> ValueFor:
    """The form of onnxq's own operators, whose meaning is a function in the model."""
    kind, dtype = solution.format, shelf.weight.dtype

    def packed(what: str, codes: np.ndarray) -> ir.Value:
        stream = pack(codes, kind.bits)
        return shelf.add(what, ir.DataType.UINT8, [stream.size], stream)

    codes = packed("quantized", solution.codes)
    scale_for = scales(shelf, solution, solution.scale.reshape(place.scale_shape))
    last = [] if solution.zero_point is None else [packed("zero_point", solution.zero_point)]
    if kind.name in LEARNED_FORMATS:
        last = [shelf.add("table", ir.DataType.FLOAT, kind.values.shape, kind.values)]
    name = f"Dequantize{operator_suffix(kind)}" + ("" if solution.zero_point is None else "Asymmetric")
    attributes: Attributes = {
        "shape": list(place.shape),
        "axis": place.axis or 0,
        "block_size": place.block_size or 1,
        "dtype": int(dtype),
    }

    def value_for(reader: ir.Node) -> ir.Value:
        read = [codes, scale_for(reader), *last]
        return shelf.editor.before(reader, (DOMAIN, name), read, attributes, shelf.result(place.shape))

    return value_for


def _outliers(shelf: Shelf, outliers: Outliers) -> list[ir.Value]:
    """Store the sparse part of a weight, as `AddOutliers` reads it."""
    gaps, values = pack_sparse(outliers.positions, half_of(outliers.values))
    dtype = ir.DataType.from_numpy(values.dtype)
    return [
        shelf.add("outlier_gap", ir.DataType.UINT16, gaps.shape, gaps),
        shelf.add("outlier", dtype, values.shape, values),
    ]


def scales(shelf: Shelf, solution: Solution, scale: np.ndarray) -> ValueFor:
    """Store scales, and make what an onnxq operator reads: numbers of one byte it reads through `Scale<T>`."""
    one_byte = scale.dtype.itemsize == 1
    scale_type = ir.DataType.UINT8 if one_byte else ir.DataType.from_numpy(scale.dtype)
    stored = shelf.add("scale", scale_type, scale.shape, scale)
    level = _tensor_scale(shelf, solution)
    if one_byte and level is None:
        level = shelf.add("tensor_scale", ir.DataType.FLOAT, [], np.ones((), np.float32))
    type_name = next(each.name for each in SCALE_TYPES.values() if each.dtype == scale.dtype)

    def value_for(reader: ir.Node) -> ir.Value:
        if level is None:
            return stored
        function = (DOMAIN, f"Scale{type_name.upper()}")
        return shelf.editor.before(reader, function, [stored, level], {}, shelf.scales(stored))

    return value_for


def _tensor_scale(shelf: Shelf, solution: Solution) -> ir.Value | None:
    """The scale of the scales, where they have one."""
    if solution.tensor_scale is None:
        return None
    return shelf.add("tensor_scale", ir.DataType.FLOAT, [], np.asarray(solution.tensor_scale))
