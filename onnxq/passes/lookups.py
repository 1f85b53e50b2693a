"""Embeddings: rows are looked up in the packed table, and only those that are asked for are unpacked."""

import numpy as np
import onnx_ir as ir

from onnxq.formats import pack
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.solution import Solution
from onnxq.model.sites import Weight
from onnxq.passes.edit import Attributes, Editor, describe
from onnxq.passes.insert import Shelf, scales
from onnxq.passes.sink import Sink


def replace_lookups(editor: Editor, rows: Weight, solution: Solution, sink: Sink, text: str) -> int:
    """Turn each `Gather` of rows into `Gather<F>`.

    Args:
        editor: Of the model.
        rows: Of a `form.Table`.
        solution: Its codes and scales, [V, H, 1].
        sink: Takes the bytes.
        text: What a graph viewer shows about them.

    Returns:
        Bytes of codes, scales and zero points.
    """
    kind, (V, H) = solution.format, rows.shape
    shelf = Shelf(editor, rows, sink)
    packed = shelf.add("quantized", ir.DataType.UINT8, [V, H * kind.bits // 8], pack(solution.codes, kind.bits))
    scale_for = scales(shelf, solution, _matrix(solution.scale))
    zeros, name = [], f"Gather{operator_suffix(kind)}"
    if solution.zero_point is not None:
        codes = _matrix(solution.zero_point)
        zeros, name = [shelf.add("zero_point", ir.DataType.UINT8, codes.shape, codes)], f"{name}Asymmetric"
    attributes: Attributes = {"shape": [V, H], "block_size": solution.block or H, "dtype": int(rows.dtype)}
    for site in rows.sites:
        inputs = [packed, scale_for(site.node), *zeros, site.node.inputs[1]]
        editor.replace(site.node, (DOMAIN, name), inputs, attributes)
        describe(site.node, text)
    return shelf.size_bytes


def _matrix(array: np.ndarray) -> np.ndarray:
    """[V, blocks] of [V, blocks, 1]."""
    return array.reshape(array.shape[:2])
