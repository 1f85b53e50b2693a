"""Products for onnxq's GPU kernels: `MatMul<F>Tiled` with the weight in the order in which tensor cores take it."""

import numpy as np
import onnx_ir as ir

from onnxq.formats.tiled import pack_tiled
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.solution import Solution
from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor, describe
from onnxq.passes.insert import Shelf, scales
from onnxq.passes.sink import Sink

# The attribute `layout`: `tiled1`.
_LAYOUT = 1


def replace_products(editor: Editor, weight: Weight, solution: Solution, sink: Sink, text: str) -> int:
    """Turn the products with a weight into `MatMul<F>Tiled`, a Gemm with a bias into that and an Add.

    Args:
        editor: Of the model.
        weight: For which `fusion.will_tile` holds.
        solution: Its codes and scales.
        sink: Takes the bytes.
        text: What a graph viewer shows about them.

    Returns:
        Bytes of codes, scales and zero points.
    """
    _, K, N = solution.codes.shape
    shape = (solution.scale.shape[1], N)  # one scale in all is written once a column
    shelf = Shelf(editor, weight, sink)
    codes = pack_tiled(solution.codes[0], solution.format)
    packed = shelf.add("quantized", ir.DataType.UINT8, codes.shape, codes)
    scale_for = scales(shelf, solution, np.broadcast_to(solution.scale[0], shape))
    zeros, name = [], f"MatMul{operator_suffix(solution.format)}Tiled"
    if solution.zero_point is not None:
        name += "Asymmetric"
        zero = np.broadcast_to(solution.zero_point[0], shape)
        zeros.append(shelf.add("zero_point", ir.DataType.UINT8, shape, zero))
    attributes: dict[str, int | list[int]] = {
        "shape": [K, N],
        "block_size": solution.block or K,
        "dtype": int(weight.dtype),
        "layout": _LAYOUT,
    }
    for site in weight.sites:
        node = site.node
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], packed, scale_for(node), *zeros]
        if bias is None:
            editor.replace(node, (DOMAIN, name), inputs, attributes)
            describe(node, text)
        else:
            result = ir.Value(name=f"{node.name or weight.name}_product", type=ir.TensorType(weight.dtype))
            product = editor.before(node, (DOMAIN, name), inputs, attributes, result)
            editor.replace(node, ("", "Add"), [product, bias], {})
            describe(node, text)
    return shelf.size_bytes
