"""Where the weights of a model are: in its graph, subgraphs and function bodies, each with who reads it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import (
    FLOAT_TYPES,
    View,
    apply_views,
    constant_tensor,
    constants,
    trace,
    view_dtype,
    view_shape,
    views,
)
from onnxq.model.labels import label_of
from onnxq.model.mapped import MappedTensor
from onnxq.model.operators import (
    Layout,
    Operand,
    is_op,
    is_set,
    operator_name,
    other_purpose,
    weight_operands,
)
from onnxq.model.scopes import scopes
from onnxq.recipes import Role

# Operators between the output head and the model's output.
_PASS_ON = ("Identity", "Cast", "Add", "Mul", "Div", "Reshape", "Slice", "Squeeze", "Tanh")


@dataclass(frozen=True)
class Site:
    """One input of one operator that reads a weight.

    Attributes:
        node: The operator.
        index: Which input.
        layout: What the axes mean to it, in the shape in which it reads the weight.
        embedding: It looks rows up.
        source: The constant at the upper end of the chain.
        chain: Nodes between source and operand.
        steps: What the chain does, normalised, with the transposition that the operator itself makes of a matrix at its
            end; None where a step is not constant.
        transposed_by: The attribute of the node behind that transposition, to be cleared where it is folded.
    """

    node: ir.Node
    index: int
    layout: Layout
    embedding: bool
    source: ir.Value
    chain: tuple[ir.Node, ...]
    steps: tuple[View, ...] | None
    transposed_by: str | None


@dataclass(frozen=True)
class Weight:
    """One constant float tensor of two or more dimensions, with all operators that read it as a weight.

    Attributes:
        name: Of the constant; within a function body with the function's name before it.
        source: The constant.
        tensor: What is stored, not yet read.
        sites: Who reads it as a weight; empty where nobody does.
        steps: The chain from source to the readers that is folded into the weight; empty where the weight is quantized
            as it is stored.
        layout: What the axes of the folded weight mean; None exactly where there is an obstacle to quantizing it.
        role: What it is for.
        obstacle: Why it cannot be quantized, or None.
        in_function: It stands in a function body, where a constant is a node.
    """

    name: str
    source: ir.Value
    tensor: ir.TensorProtocol
    sites: tuple[Site, ...]
    steps: tuple[View, ...]
    layout: Layout | None
    role: Role
    obstacle: str | None
    in_function: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as quantized: after the folded chain."""
        return view_shape(self.tensor.shape.numpy(), self.steps)

    @property
    def dtype(self) -> ir.DataType:
        """Of the weight as quantized."""
        return view_dtype(self.tensor.dtype, self.steps)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file as it is stored now."""
        return self.tensor.nbytes

    @property
    def op(self) -> str:
        """Type of the operator that reads it; of several, of the first."""
        return operator_name(self.sites[0].node) if self.sites else ", ".join(sorted(set(self._consumers())))

    @property
    def label(self) -> str:
        """What people call it."""
        return label_of(self.name, (site.node for site in self.sites))

    @property
    def names(self) -> tuple[str, ...]:
        """What a recipe may call it: its own name, its readers', and its label."""
        readers = (site.node.name for site in self.sites if site.node.name)
        return tuple(dict.fromkeys((self.name, *readers, self.label)))

    def _consumers(self) -> Iterator[str]:
        return (operator_name(node) for node in self.source.consumers())

    def read(self) -> np.ndarray:
        """The weight as quantized, in its own float type; a view of the file where the chain allows."""
        return apply_views(self.tensor.numpy(), self.steps)

    def release(self) -> None:
        """Let go of the memory of what was read, where it is that of a file."""
        if isinstance(self.tensor, MappedTensor):
            self.tensor.release()


def find_weights(model: ir.Model) -> list[Weight]:
    """All float constants of two or more dimensions, in the order in which the model lists them."""
    weights: list[Weight] = []
    for scope in scopes(model):
        prefix = f"{scope.domain}::{scope.name}/" if isinstance(scope, ir.Function) else ""
        readers: dict[ir.Value, list[Site]] = defaultdict(list)
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for site in _sites(node):
                readers[site.source].append(site)
        vocabularies = {
            tensor.shape.numpy()[0]
            for source, sites in readers.items()
            if any(site.embedding for site in sites) and (tensor := constant_tensor(source))
        }
        for source in constants(scope):
            tensor = constant_tensor(source)
            if tensor is not None and tensor.dtype in (*FLOAT_TYPES, ir.DataType.DOUBLE) and len(tensor.shape) >= 2:
                weights.append(_weight(prefix, source, tensor, readers[source], vocabularies))
    return weights


def _sites(node: ir.Node) -> list[Site]:
    """The weights a node reads: every table that it looks rows up in, but of two constant factors only the first."""
    found: list[Site] = []
    for operand in weight_operands(node):
        if operand.index < len(node.inputs) and (value := node.inputs[operand.index]) is not None:
            source, chain = trace(value)
            tensor = constant_tensor(source)
            if tensor is not None and (site := _site_of(node, operand, source, chain, tensor)):
                found.append(site)
                if not operand.embedding:
                    break
    return found


def _site_of(
    node: ir.Node, operand: Operand, source: ir.Value, chain: tuple[ir.Node, ...], tensor: ir.TensorProtocol
) -> Site | None:
    steps = views(tensor, chain)
    rank = len(view_shape(tensor.shape.numpy(), steps or ()))
    layout = operand.layout(node, rank)
    if layout is None:
        return None
    turned = operand.transposed_by is not None and is_set(node, operand.transposed_by)
    if turned is None:
        steps = None
    elif turned and steps is not None:
        steps = (*steps, ("Transpose", (*range(rank - 2), rank - 1, rank - 2)))
    transposed_by = operand.transposed_by if turned else None
    return Site(node, operand.index, layout, operand.embedding, source, chain, steps, transposed_by)


def _weight(
    prefix: str, source: ir.Value, tensor: ir.TensorProtocol, sites: Sequence[Site], vocabularies: set[int]
) -> Weight:
    role: Role = "linear"
    if any(site.embedding for site in sites):
        role = "embedding"
    elif any(_is_head(site, vocabularies) for site in sites):
        role = "head"
    steps: tuple[View, ...] = ()
    layout: Layout | None = None
    obstacle = _obstacle(source, tensor, sites)
    if obstacle is None:
        if all(site.steps == sites[0].steps for site in sites):
            steps = sites[0].steps or ()
            layout = sites[0].layout if all(site.layout == sites[0].layout for site in sites) else None
        else:
            layout = _common_layout(sites)
        if layout is None:
            obstacle = "its readers sum over different axes"
    return Weight(
        name=prefix + (source.name or ""),
        source=source,
        tensor=tensor,
        sites=tuple(sites),
        steps=steps,
        layout=None if obstacle else layout,
        role=role,
        obstacle=obstacle,
        in_function=bool(prefix),
    )


def _obstacle(source: ir.Value, tensor: ir.TensorProtocol, sites: Sequence[Site]) -> str | None:
    """Why a constant cannot be quantized at all."""
    if purpose := _purpose(source):
        return purpose
    if not sites:
        readers = sorted({operator_name(node) for node in source.consumers()})
        return f"read by {', '.join(readers)}, not as a weight" if readers else "nobody reads it"
    if tensor.dtype not in FLOAT_TYPES:
        return "float64 weights stay as they are"
    if any(site.steps is None for site in sites):
        return "reshaped by something that is not constant"
    passed = {node for site in sites for node in site.chain}
    read = {(site.node, site.index) for site in sites}
    for value in (source, *(node.outputs[0] for node in passed)):
        if value.is_graph_input():
            return "also a graph input: a caller may replace it"
        if value.is_graph_output():
            return "also a graph output"
        for node, index in value.uses():
            if node not in passed and (node, index) not in read:
                return f"also read by {operator_name(node)} '{node.name}'"
    return None


def _purpose(source: ir.Value) -> str | None:
    """What a constant is that is known to be no weight, also where its rows are looked up first."""
    for node, index in source.uses():
        looked_up = node.outputs[0].uses() if is_op(node, "Gather") and index == 0 else ()
        for reader, at in ((node, index), *looked_up):
            if purpose := other_purpose(reader, at):
                return purpose
    return None


def _common_layout(sites: Sequence[Site]) -> Layout | None:
    """The layout of a tied weight in the shape in which it is stored, if its readers agree on it."""
    layouts = set()
    for site in sites:
        reduction, channel, rank = site.layout.reduction, site.layout.channel, len(site.source.shape or ())
        if site.layout.flatten:
            return None
        for operator, numbers in reversed(site.steps or ()):
            if operator == "Reshape":
                return None
            if operator == "Transpose":
                reduction, channel = numbers[reduction], numbers[channel]
        layouts.add(Layout(reduction % max(rank, 1), channel % max(rank, 1)) if rank else site.layout)
    return layouts.pop() if len(layouts) == 1 else None


def _is_head(site: Site, vocabularies: set[int]) -> bool:
    """Whether the logits of a language model come out: one channel a token of the embedding, right before an output."""
    tensor = constant_tensor(site.source)
    if tensor is None or site.steps is None:
        return False
    shape = view_shape(tensor.shape.numpy(), site.steps)
    if shape[site.layout.channel] not in vocabularies:
        return False
    reached = list(site.node.outputs)
    for value in reached:
        if value.is_graph_output():
            return True
        for node in value.consumers():
            if is_op(node, *_PASS_ON):
                reached.extend(output for output in node.outputs if output not in reached)
    return False
