"""Products for onnxq's GPU kernels: `MatMul<F>Tiled` and `Linear<F>Tiled`, weights in the order of tensor cores."""

import numpy as np
import onnx_ir as ir

from onnxq.formats.tiled import TILED_VERSION, pack_tiled
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.solution import Solution
from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor, describe
from onnxq.passes.finish import with_bias
from onnxq.passes.insert import Shelf, scales
from onnxq.passes.sink import Sink


def replace_products(editor: Editor, weight: Weight, solution: Solution, sink: Sink, text: str) -> int:
    """Turn the products with a weight into `MatMul<F>Tiled`, those with a bias into `Linear<F>Tiled`.

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
    zeros, ending = [], f"{operator_suffix(solution.format)}Tiled"
    if solution.zero_point is not None:
        ending += "Asymmetric"
        zero = np.broadcast_to(solution.zero_point[0], shape)
        zeros.append(shelf.add("zero_point", ir.DataType.UINT8, shape, zero))
    attributes: dict[str, int | list[int]] = {
        "shape": [K, N],
        "block_size": solution.block or K,
        "dtype": int(weight.dtype),
        "layout": TILED_VERSION,
    }
    for site in weight.sites:
        node = site.node
        place, bias = with_bias(node, N)
        inputs = [node.inputs[0], packed, scale_for(node), *zeros]
        if bias is not None:
            describe(place, text)
            editor.replace(place, (DOMAIN, f"Linear{ending}"), [*inputs, bias], attributes)
            # People know a weight by the product that reads it, not by the addition behind.
            place.name = node.name
            continue
        describe(node, text)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            result = ir.Value(name=f"{node.name or weight.name}_product", type=ir.TensorType(weight.dtype))
            product = editor.before(node, (DOMAIN, f"MatMul{ending}"), inputs, attributes, result)
            editor.replace(node, ("", "Add"), [product, node.inputs[2]], {})
        else:
            editor.replace(node, (DOMAIN, f"MatMul{ending}"), inputs, attributes)
    return shelf.size_bytes
