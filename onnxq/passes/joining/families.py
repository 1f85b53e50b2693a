"""Which products can become one: they read one input, and one operator reads all their results."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

import onnx_ir as ir

from onnxq.model.operators import MICROSOFT, is_op
from onnxq.model.sites import Weight


@dataclass(frozen=True)
class Family:
    """Products that can become one.

    Attributes:
        end: What reads them: a `GroupQueryAttention`, which takes queries, keys and values in one tensor too, or the
            last `Mul` of silu(gate) * up.
        weights: Names of theirs, in the order of the results.
    """

    end: ir.Node
    weights: tuple[str, ...]

    @property
    def is_gated(self) -> bool:
        """Whether they are gate and up."""
        return is_op(self.end, "Mul")

    def results(self) -> tuple[ir.Value, ...]:
        """Of the products as they are now; empty where something stands between them and their reader by now."""
        return _gate_and_up(self.end) if self.is_gated else _queries_keys_values(self.end)


def find_families(graph: ir.Graph, weights: Iterable[Weight]) -> Iterator[Family]:
    """Families of products with these weights, before they are quantized."""
    by_product = {weight.sites[0].node: weight.name for weight in weights if len(weight.sites) == 1}
    for node in graph:
        results = _queries_keys_values(node) or _gate_and_up(node)
        products = [_product(each) for each in results]
        names = [by_product[each] for each in products if each in by_product]
        if names and len(names) == len(results) and len({each.inputs[0] for each in products if each}) == 1:
            yield Family(node, tuple(names))


def _queries_keys_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """What an attention reads in three tensors, where nothing else reads them."""
    if node.domain != MICROSOFT or node.op_type != "GroupQueryAttention":
        return ()
    values = tuple(value for value in node.inputs[:3] if value is not None and _has_readers(value, 1))
    return values if len(values) == 3 else ()


def _gate_and_up(node: ir.Node) -> tuple[ir.Value, ...]:
    """Of a `Mul` that is (gate * Sigmoid(gate)) * up the two, where nothing else reads them or what is between."""
    for silu, up in permutations(node.inputs) if is_op(node, "Mul") else ():
        inner = None if silu is None else silu.producer()
        if silu is None or up is None or not is_op(inner, "Mul") or not _has_readers(silu, 1):
            continue
        for gate, opened in permutations(inner.inputs):
            sigmoid = None if opened is None else opened.producer()
            if gate is None or opened is None or not is_op(sigmoid, "Sigmoid"):
                continue
            if (
                sigmoid.inputs[0] is gate
                and _has_readers(gate, 2)
                and all(_has_readers(each, 1) for each in (opened, up))
            ):
                return gate, up
    return ()


def _has_readers(value: ir.Value, count: int) -> bool:
    return len(value.uses()) == count and not value.is_graph_output()


def _product(value: ir.Value) -> ir.Node | None:
    """The product that makes a value, perhaps with a bias added behind it."""
    node = value.producer()
    if is_op(node, "Add"):
        makers = [each.producer() for each in node.inputs if each is not None]
        node = next((each for each in makers if is_op(each, "MatMul")), None)
    return node if is_op(node, "MatMul", "Gemm") else None
