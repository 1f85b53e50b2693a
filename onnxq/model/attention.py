"""What onnxruntime's fused attention says about the cache of keys and values of a model."""

import onnx_ir as ir

from onnxq.model.operators import MICROSOFT, is_op


def grouped_attentions(graph: ir.Graph) -> list[ir.Node]:
    """The `GroupQueryAttention` nodes of the main graph; their cache is one buffer that each run writes into."""
    return [node for node in graph if node.op_type == "GroupQueryAttention" and node.domain == MICROSOFT]


def past_sizes(graph: ir.Graph) -> dict[str, int]:
    """Sizes of the heads of each past, by the name of the input; onnxruntime-genai's builder leaves them open."""
    found = {}
    for attention in grouped_attentions(graph):
        if (size := head_size(attention)) is not None:
            found.update({past.name: size for past in attention.inputs[3:5] if past is not None and past.name})
    return found


def head_size(attention: ir.Node) -> int | None:
    """Size of a head of a `GroupQueryAttention`, from the width of its queries; None where the model does not say."""
    query, key = attention.inputs[0], attention.inputs[1]
    width = _width(query)
    if width is None:
        return None
    heads = attention.attributes["num_heads"].as_int()
    # Without an input for keys, queries, keys and values come in one tensor.
    return width // (heads if key is not None else heads + 2 * attention.attributes["kv_num_heads"].as_int())


def _width(value: ir.Value | None) -> int | None:
    """The last dimension of a value: as the model notes it, or the columns of the weight that makes it."""
    if value is None:
        return None
    if value.shape is not None and len(value.shape) and isinstance(dim := value.shape[-1], int):
        return dim
    maker = value.producer()
    if is_op(maker, "MatMul") and len(maker.inputs) > 1:
        return _width(maker.inputs[1])
    return None


def table_rows(attention: ir.Node) -> int | None:
    """Positions that the rotary tables of a `GroupQueryAttention` have; None where it has no tables."""
    table = attention.inputs[7] if len(attention.inputs) > 7 else None
    if table is None or table.shape is None or not isinstance(rows := table.shape[0], int):
        return None
    return rows
