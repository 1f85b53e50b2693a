"""Weights that are binary but for a few in INT8: the constants, and the node that makes a weight of them."""

import numpy as np
import onnx_ir as ir

from onnxq.formats import pack
from onnxq.functions import DOMAIN
from onnxq.methods.solution import Salient, Solution
from onnxq.model.sites import Weight
from onnxq.passes.edit import Attributes, Editor, describe
from onnxq.passes.insert import Shelf, connect, placement
from onnxq.passes.sink import Sink
from onnxq.recipes import QuantSpec


def insert_partly_binary(
    editor: Editor, weight: Weight, spec: QuantSpec, solution: Solution, salient: Salient, sink: Sink, text: str
) -> int:
    """Store a weight and let its readers read what `PartlyBinary` makes of it.

    Args:
        editor: Of the model.
        weight: To store.
        spec: How it was quantized.
        solution: Its signs, their scales, and the mean around which they lie.
        salient: What of it is INT8.
        sink: Takes the bytes.
        text: What a graph viewer shows about the nodes.

    Returns:
        Bytes of signs, mask, integers, scales and means.
    """
    place, shelf = placement(weight, spec, standard=False), Shelf(editor, weight, sink)
    axis = place.axis or 0
    columns = [1 if at == axis else dim for at, dim in enumerate(place.shape)]
    kept = salient.mask.reshape(-1)
    signs, mask = pack(solution.codes.reshape(-1)[~kept], 1), pack(kept.astype(np.uint8), 1)
    scale_type, salient_type = (ir.DataType.from_numpy(each.scale.dtype) for each in (solution, salient))
    inputs = [
        shelf.add("sign", ir.DataType.UINT8, signs.shape, signs),
        shelf.add("mask", ir.DataType.UINT8, mask.shape, mask),
        shelf.add("scale", scale_type, place.scale_shape, solution.scale),
        shelf.add("mean", scale_type, place.scale_shape, salient.mean),
        shelf.add("salient", ir.DataType.INT8, salient.codes.shape, salient.codes),
        shelf.add("salient_scale", salient_type, columns, salient.scale),
    ]
    attributes: Attributes = {
        "shape": list(place.shape),
        "axis": axis,
        "block_size": place.block_size or 1,
        "dtype": int(weight.dtype),
    }

    def value_for(reader: ir.Node) -> ir.Value:
        made = editor.before(reader, (DOMAIN, "PartlyBinary"), inputs, attributes, shelf.result(place.shape))
        if (node := made.producer()) is not None:
            describe(node, text)
        return shelf.in_shape(reader, made)

    connect(weight, value_for)
    return shelf.size_bytes
