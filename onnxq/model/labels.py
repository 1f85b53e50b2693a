"""What people call a weight: the path of the module that reads it, rather than the name an exporter made up."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx_ir as ir

# torch.onnx.export notes where a node comes from: ": Model/layers.0: Block/layers.0.up: Linear/linear: aten.linear".
_NAMESPACE = "namespace"
_OPERATION = "aten."
# The tracing exporter folds constants under names like onnx::MatMul_812, and has the path in the node: /mlp/up/MatMul.
_NAMELESS = re.compile(r"onnx::[\w{},]+")
_WORDS = re.compile(r"([^A-Za-z0-9])")


@dataclass(frozen=True)
class Named:
    """What a weight goes by.

    Attributes:
        weight: Name of the constant.
        label: What people call it: the path of the module that reads it, where the exporter noted it, or the name.
        op: Type of the operator that reads it.
        readers: Names of the nodes that read it.
    """

    weight: str
    label: str
    op: str
    readers: tuple[str, ...]


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


def together(names: Sequence[str]) -> str:
    """One name for several: what they have in common, and in braces where they differ (`mlp.{gate,up}_proj`)."""
    words = [_WORDS.split(name) for name in names]
    first = _alike(words)
    last = min(_alike([each[::-1] for each in words]), min(map(len, words)) - first)
    if all(each == words[0] for each in words):
        return names[0]
    middles = ",".join("".join(each[first : len(each) - last]) for each in words)
    return "".join((*words[0][:first], "{", middles, "}", *words[0][len(words[0]) - last :]))


def _alike(words: Sequence[Sequence[str]]) -> int:
    """How many of their first words are the same."""
    return sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False)))


def together_module(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Metadata of one node for several that notes the modules of all, where their exporter noted them."""
    modules = [module_of(node) for node in nodes]
    return {_NAMESPACE: f"{together(modules)}: modules"} if all(modules) else {}
