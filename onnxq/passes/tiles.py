"""What onnxq's GPU kernels run, on weights in the order of tensor cores.

`MatMul<F>Tiled` and `Linear<F>Tiled` multiply by them, and `Gather<F>Tiled` looks their columns up.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.formats.tiled import TILED_VERSION, pack_tiled, tiled_columns, tiled_rows
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.solution import Solution
from onnxq.model.products import with_bias
from onnxq.model.sites import Site, Weight
from onnxq.passes.edit import Attributes, Editor, describe
from onnxq.passes.insert import Shelf, scales
from onnxq.passes.sink import Sink

# An operator, what it reads (but for the result of the one before), and its attributes.
Step = tuple[tuple[str, str], Sequence[ir.Value | None], Attributes]


def replace_products(
    editor: Editor, weight: Weight, solution: Solution, sink: Sink, text: str, lookups: Sequence[Site] = ()
) -> int:
    """Turn the products with a weight into `MatMul<F>Tiled`, those with a bias into `Linear<F>Tiled`.

    Columns that fill up the last unit of the layout are copies of the last one, and cut off the result. Rows that do so
    are zeros and meet no activations.

    Args:
        editor: Of the model.
        weight: For which `fusion.will_tile` holds.
        solution: Its codes and scales.
        sink: Takes the bytes.
        text: What a graph viewer shows about them.
        lookups: Which look up its columns; they become `Gather<F>Tiled` of the same.

    Returns:
        Bytes of codes, scales and zero points.
    """
    _, K, N = solution.codes.shape
    columns = tiled_columns(N)
    shape = (solution.scale.shape[1], columns)  # one scale in all is written once a column
    shelf = Shelf(editor, weight, sink)
    units = np.pad(_widened(solution.codes[0], N, columns), ((0, tiled_rows(K) - K), (0, 0)))
    codes = pack_tiled(units, solution.format)
    packed = shelf.add("quantized", ir.DataType.UINT8, codes.shape, codes)
    scale_for = scales(shelf, solution, _widened(solution.scale[0], N, columns))
    zeros, ending = [], f"{operator_suffix(solution.format)}Tiled"
    if solution.zero_point is not None:
        ending += "Asymmetric"
        zeros.append(shelf.add("zero_point", ir.DataType.UINT8, shape, _widened(solution.zero_point[0], N, columns)))
    attributes: Attributes = {
        "shape": [K, columns],
        "block_size": solution.block or K,
        "dtype": int(weight.dtype),
        "layout": TILED_VERSION,
    }
    for site in lookups:
        inputs = [packed, scale_for(site.node), *zeros, site.node.inputs[1]]
        editor.replace(site.node, (DOMAIN, f"Gather{ending}"), inputs, {**attributes, "shape": [K, N]})
        describe(site.node, text)
    cut = _first_columns(editor, weight, N) if columns > N and weight.sites else []
    for site in weight.sites:
        node = site.node
        place, bias = with_bias(node, N)
        inputs = [node.inputs[0], packed, scale_for(node), *zeros]
        if bias is not None and not cut:
            describe(place, text)
            editor.replace(place, (DOMAIN, f"Linear{ending}"), [*inputs, bias], attributes)
            # People know a weight by the product that reads it, not by the addition behind.
            place.name = node.name
            continue
        steps: list[Step] = [((DOMAIN, f"MatMul{ending}"), inputs, attributes)]
        if cut:
            steps.append((("", "Slice"), cut, {}))
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            steps.append((("", "Add"), [node.inputs[2]], {}))
        describe(_replace(editor, node, steps, weight.dtype), text)
    return shelf.size_bytes


def _widened(array: np.ndarray, before: int, columns: int) -> np.ndarray:
    """The columns of [rows, before], or one for all of them, and the last one again for those that fill up."""
    wide = np.broadcast_to(array, (len(array), before))
    return np.pad(wide, ((0, 0), (0, columns - before)), mode="edge")


def _first_columns(editor: Editor, weight: Weight, count: int) -> list[ir.Value | None]:
    """What a `Slice` reads that leaves so many columns."""
    numbers = {"start": 0, "end": count, "axis": -1}
    tensors = [ir.tensor([each], name=editor.fresh(f"{weight.source.name}_{name}")) for name, each in numbers.items()]
    return [editor.constant(each, weight.source) for each in tensors]


def _replace(editor: Editor, node: ir.Node, steps: Sequence[Step], dtype: ir.DataType) -> ir.Node:
    """Put a product and what follows it in the place of a node, and give the product."""
    results: list[ir.Value] = []
    for operator, operands, attributes in steps[:-1]:
        result = ir.Value(name=f"{node.name or operator[1]}_product", type=ir.TensorType(dtype))
        results.append(editor.before(node, operator, [*results[-1:], *operands], attributes, result))
    operator, operands, attributes = steps[-1]
    editor.replace(node, operator, [*results[-1:], *operands], attributes)
    product = results[0].producer() if results else None
    if product is None:
        return node
    product.metadata_props.update(node.metadata_props)
    return product
