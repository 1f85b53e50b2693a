"""What a `MatMul` or `Gemm` computes beside x @ w: factors, transpositions and a bias."""

import onnx_ir as ir

from onnxq.model.operators import is_op, is_set


def is_unscaled(node: ir.Node) -> bool:
    """Whether alpha and beta are one; not where a function's caller decides."""
    return _is_one(node, "alpha") and _is_one(node, "beta")


def is_plain_product(node: ir.Node) -> bool:
    """Whether it is x @ w + b, or x @ w, where w is what transB makes of the weight."""
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return is_set(node, "transA") is False and _is_one(node, "alpha") and (not has_bias or _is_one(node, "beta"))


def _is_one(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is None or (not attribute.is_ref() and attribute.as_float() == 1)


def with_bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """The last node of a product, and what it adds to each column."""
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return node, bias if _has_shape(bias, columns) else None
    result = node.outputs[0]
    users = [use.node for use in result.uses()]
    if len(users) == 1 and is_op(users[0], "Add") and not result.is_graph_output() and users[0].graph is node.graph:
        for value in users[0].inputs:
            if value is not result and _has_shape(value, columns):
                return users[0], value
    return node, None


def _has_shape(value: ir.Value | None, columns: int) -> bool:
    return value is not None and value.shape is not None and list(value.shape) == [columns]
