"""What people call a weight: the path of the module that reads it, rather than the name an exporter made up."""

import re
from collections.abc import Iterable

import onnx_ir as ir

# torch.onnx.export notes where a node comes from: ": Model/layers.0: Block/layers.0.up: Linear/linear: aten.linear".
_NAMESPACE = "namespace"
_OPERATION = "aten."
# The tracing exporter folds constants under names like onnx::MatMul_812, and has the path in the node: /mlp/up/MatMul.
_NAMELESS = re.compile(r"onnx::\w+")


def label_of(name: str, readers: Iterable[ir.Node]) -> str:
    """How to call a constant that these nodes read: by the module or the node that reads it first, or by its name.

    A name that holds the path of the module, such as `layers.0.mlp.up.weight`, is the best label.
    """
    reader = next(iter(readers), None)
    if reader is None:
        return name
    module = module_of(reader)
    if module:
        return name if module in name else module
    return reader.name if _NAMELESS.fullmatch(name) and reader.name else name


def module_of(node: ir.Node) -> str:
    """The path of the module that a node belongs to, as its exporter noted it; empty if it did not."""
    path = ""
    for part in node.metadata_props.get(_NAMESPACE, "").split("/"):
        scope, _, kind = part.partition(": ")
        if scope and kind and not kind.startswith(_OPERATION):
            path = scope
    return path
