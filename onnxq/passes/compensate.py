"""Low-rank compensation in the graph: x @ weight becomes x @ rounded + (x @ left) @ right."""

import numpy as np
import onnx_ir as ir

from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor, add_behind
from onnxq.passes.insert import Shelf
from onnxq.passes.sink import Sink

LowRank = tuple[np.ndarray, np.ndarray]


def compensate(editor: Editor, weight: Weight, low_rank: LowRank, sink: Sink) -> int:
    """Add the product of two matrices to what the readers of a weight give; before the weight itself is replaced.

    Returns:
        Bytes of the matrices.
    """
    shelf = Shelf(editor, weight, sink)
    left, right = (
        shelf.add(what, weight.dtype, matrix.shape, matrix.astype(weight.dtype.numpy()))
        for what, matrix in zip(("left", "right"), low_rank, strict=True)
    )
    for site in weight.sites:
        node, result = site.node, site.node.outputs[0]
        name = result.name or node.op_type
        thin = ir.Value(name=f"{name}_thin", type=result.type)
        thin = editor.before(node, ("", "MatMul"), [node.inputs[0], left], {}, thin)
        taken = ir.Value(name=f"{name}_taken", type=result.type, shape=result.shape)
        taken = editor.before(node, ("", "MatMul"), [thin, right], {}, taken)
        add_behind(editor, result, taken)
    return shelf.size_bytes
