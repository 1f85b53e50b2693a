"""The residual stream of a transformer: the values that layers are added to, who writes them and who reads them.

A rotation of all of them changes nothing where each weight that writes is rotated, each norm does not mind, and each
weight that reads undoes it (QuaRot's R1). Norms do not mind once their scale and shift are in the weights behind them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.model.constants import constant_shape
from onnxq.model.operators import is_op, operator_name
from onnxq.model.shapes import Shapes
from onnxq.model.sites import Weight
from onnxq.passes.rotation.linear import Linear, keeps_rows
from onnxq.passes.rotation.norm import FUSED, Form, Kind, Norm, Operand, behind, squares


@dataclass(frozen=True)
class Stream:
    """A residual stream that can be rotated.

    Attributes:
        name: Of the first value of it that is normalized.
        width: Number of channels.
        keeps_mean: Only rotations that keep the mean of a row: there are LayerNorms.
        linears: Whose output is part of it.
        tables: Embeddings whose rows are part of it.
        constants: Operands that are added to it.
        norms: Whose scale and shift go into the weights behind them.
        readers: Linears that read it, each with the norm before it or None.
        entries: Values that come into it from something else: a product of its own rotates them.
        exits: Values of it that something else reads, which gets them from a product of its own, rotated back.
        inner: Nodes between values of it.
    """

    name: str
    width: int
    keeps_mean: bool
    linears: tuple[Linear, ...]
    tables: tuple[Weight, ...]
    constants: tuple[Operand, ...]
    norms: tuple[Norm, ...]
    readers: tuple[tuple[Linear, Norm | None], ...]
    entries: tuple[ir.Value, ...]
    exits: tuple[ir.Value, ...]
    inner: frozenset[ir.Node]


@dataclass(frozen=True)
class Refused:
    """A place that cannot be rotated, and why."""

    place: str
    reason: str


def find_streams(
    graph: ir.Graph, shapes: Shapes, linears: Mapping[ir.Node, Linear], weights: Sequence[Weight]
) -> list[Stream | Refused]:
    """The residual streams of the main graph, in its order: sums that norms read."""
    tables = {
        weight.sites[0].node: weight
        for weight in weights
        if len(weight.sites) == 1 and is_op(weight.sites[0].node, "Gather") and not weight.obstacle
    }
    found, seen = [], set[ir.Value]()
    for node in graph:
        seed = node.inputs[0] if is_op(node, *FUSED) or squares(node) else None
        width = None if seed in seen else shapes.last(seed)
        if seed is None or width is None:
            continue
        region = _Region(graph, shapes, linears, tables, seed, width)
        seen |= region.values.keys()
        if region.is_residual and (result := region.stream()) is not None:
            found.append(result)
    return found


@dataclass
class _Region:
    """The values that sums connect with one that is normalized."""

    graph: ir.Graph
    shapes: Shapes
    linears: Mapping[ir.Node, Linear]
    tables: Mapping[ir.Node, Weight]
    seed: ir.Value
    width: int
    values: dict[ir.Value, None] = field(default_factory=dict)
    constants: dict[Operand, None] = field(default_factory=dict)
    inner: dict[ir.Node, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        left = [self.seed]
        while left:
            value = left.pop()
            if value in self.values or self.shapes.last(value) != self.width:
                continue
            self.values[value] = None
            maker = value.producer()
            if maker is not None and self.connects(maker):
                self.inner[maker] = None
                for at, each in self.operands(maker):
                    if constant_shape(each) is None:
                        left.append(each)
                    else:
                        self.constants[maker, at] = None
            for node, at in value.uses():
                if self.connects(node) and any(at == operand for operand, _ in self.operands(node)):
                    left.append(node.outputs[0])

    def connects(self, node: ir.Node) -> bool:
        """Whether a node makes a sum of rows, or only shows them differently."""
        if node.graph is not self.graph or (is_op(node, "Gather") and constant_shape(node.inputs[0]) is not None):
            return False
        if is_op(node, "Concat"):
            dims, axis = self.shapes.of(node.outputs[0]), node.attributes["axis"].as_int()
            return dims is not None and axis % len(dims) != len(dims) - 1
        return is_op(node, "Add", "Sum") or keeps_rows(node, self.shapes, self.width)

    def operands(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """The inputs of a connecting node that are rows."""
        rows = node.inputs if is_op(node, "Add", "Sum", "Concat") else node.inputs[:1]
        return ((at, value) for at, value in enumerate(rows) if value is not None)

    @property
    def is_residual(self) -> bool:
        """Whether layers are added to it."""
        return any(
            is_op(node, "Add", "Sum") and sum(value in self.values for value in node.inputs) > 1 for node in self.inner
        )

    def stream(self) -> Stream | Refused | None:
        """What a rotation has to reach; a reason where it cannot, None where nobody would gain by it."""
        exits: dict[ir.Value, str] = {}
        while (obstacle := (walk := _Walk(self, exits)).run()) is not None:
            root, sentence = obstacle
            if root is None or exits:
                return Refused(str(self.seed.name), next(iter(exits.values()), sentence))
            exits[root] = sentence
        sources = [value for value in self.values if value.producer() not in self.inner]
        makers = [node for value in sources if (node := value.producer()) is not None]
        entries = [value for value in sources if not {value.producer()} & (self.linears.keys() | self.tables.keys())]
        if (reason := self.refusal(walk, entries, exits)) is not None:
            return Refused(str(self.seed.name), reason)
        return Stream(
            name=str(self.seed.name),
            width=self.width,
            keeps_mean=walk.keeps_mean,
            linears=tuple(self.linears[node] for node in makers if node in self.linears),
            tables=tuple(self.tables[node] for node in makers if node in self.tables),
            constants=tuple(self.constants),
            norms=tuple(walk.norms),
            readers=tuple(walk.readers.values()),
            entries=tuple(entries),
            exits=tuple(exits),
            inner=frozenset(self.inner),
        )

    def refusal(self, walk: "_Walk", entries: Sequence[ir.Value], exits: Mapping[ir.Value, str]) -> str | None:
        """Why a stream without obstacles is left alone, or None."""
        if len(walk.norms) + len(exits) < 2:
            if any(_is_norm(value.producer()) for value in entries):
                return "post-norm: layers are added to what a norm puts out, so its scale cannot go into weights"
            return "fewer than two norms read it"
        if len(entries) > 1:
            shown = ", ".join(f"'{each.name}'" for each in entries[:3])
            return f"{len(entries)} of its values are made by no weight of their own: {shown}"
        for node, at in self.constants:
            dims = constant_shape(node.inputs[at])
            if not dims or dims[-1] != self.width:
                return f"{operator_name(node)} '{node.name}' adds one number to all channels"
        return None


def _is_norm(node: ir.Node | None) -> bool:
    """Whether a node ends a norm: fused, or a scale or shift of each channel."""
    if is_op(node, *FUSED):
        return True
    return is_op(node, "Mul", "Add") and any(constant_shape(each) for each in node.inputs)


class _Walk:
    """Goes through the graph and says what each value becomes if a region is rotated."""

    def __init__(self, region: _Region, exits: Mapping[ir.Value, str]) -> None:
        """At `exits` values are rotated back for all who read them outside of the region."""
        self.region = region
        self.exits = exits
        self.readers: dict[ir.Node, tuple[Linear, Norm | None]] = {}
        self.norms: dict[Norm, None] = {}
        self.keeps_mean = False
        self._kinds = {value: Kind(Form.ROTATED, value) for value in region.values}

    def run(self) -> tuple[ir.Value | None, str] | None:
        """None, or the first obstacle: the value that would have to be rotated back, if that helps, and a sentence."""
        for node in ir.traversal.RecursiveGraphIterator(self.region.graph):
            if node in self.region.inner:
                for _, value in self.region.operands(node):
                    if value not in self._kinds and constant_shape(value) is None:
                        return None, f"'{value.name}' of another width is added to it"
            elif obstacle := self._step(node):
                return obstacle
        for value, kind in self._kinds.items():
            if value.is_graph_output():
                inside = value in self.region.values
                return None if inside else kind.root, f"'{value.name}' is an output of the model"
        return None

    def _step(self, node: ir.Node) -> tuple[ir.Value | None, str] | None:
        given = [None if value is None else self._kinds.get(value) for value in node.inputs]
        given = [None if kind is None or kind.root in self.exits else kind for kind in given]
        kinds = [kind for kind in given if kind is not None]
        if not kinds or is_op(node, "Shape", "Size"):
            return None
        name = f"{operator_name(node)} '{node.name}'"
        if node.graph is not self.region.graph:
            return kinds[0].root, f"{name} reads it inside a subgraph"
        if (linear := self.region.linears.get(node)) is not None and given[0] is not None:
            if given[0].form not in (Form.ROTATED, Form.SCALED) or linear.weight.shape[0] != self.region.width:
                return kinds[0].root, f"{name} reads something else of it than its rows"
            self._read(linear, given[0])
            return None
        made = behind(node, given, self.region.shapes, self.region.width)
        if made is None:
            return kinds[0].root, f"{name} reads it, and would see a rotation"
        if node.outputs[0] in self._kinds:
            return None, f"post-norm: {name} puts what it normalizes back into it, so its scale cannot go into weights"
        self._kinds[node.outputs[0]] = made
        self.keeps_mean |= made.keeps_mean
        return None

    def _read(self, linear: Linear, kind: Kind) -> None:
        self.readers[linear.node] = linear, kind.norm
        if kind.norm is not None:
            self.norms[kind.norm] = None
