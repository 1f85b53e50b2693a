"""What can be asked about a tensor: each answer is computed inside the graph, and only the small result comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import helper

Kind = Literal["hessian", "channel_absmax", "channel_min", "channel_max", "channel_sum", "channel_abs_sum"]

Array = np.ndarray


@dataclass(frozen=True)
class Reduction:
    """One answer about a tensor seen as rows of K channels.

    Attributes:
        nodes: (rows, result, opset) -> nodes that compute `result` from `rows` [n, K].
        combine: The answers of two batches to the answer of both; float64.
        size: Elements of the answer, given K.
    """

    nodes: Callable[[str, str, int], list[onnx.NodeProto]]
    combine: Callable[[Array, Array], Array]
    size: Callable[[int], int]


def _hessian(rows: str, result: str, _opset: int) -> list[onnx.NodeProto]:
    turned = f"{result}/turned"
    return [
        helper.make_node("Transpose", [rows], [turned], perm=[1, 0]),
        helper.make_node("MatMul", [turned, rows], [result]),
    ]


def _reduced(operator: str, *, magnitude: bool = False) -> Callable[[str, str, int], list[onnx.NodeProto]]:
    """Over all rows, each channel for itself."""

    def nodes(rows: str, result: str, opset: int) -> list[onnx.NodeProto]:
        made, source = [], rows
        if magnitude:
            source = f"{result}/abs"
            made.append(helper.make_node("Abs", [rows], [source]))
        # Axes became an input of ReduceSum at opset 13, of the others at 18.
        if opset >= (13 if operator == "ReduceSum" else 18):
            axes = f"{result}/axes"
            made.append(helper.make_node("Constant", [], [axes], value_ints=[0]))
            made.append(helper.make_node(operator, [source, axes], [result], keepdims=0))
        else:
            made.append(helper.make_node(operator, [source], [result], axes=[0], keepdims=0))
        return made

    return nodes


REDUCTIONS: dict[Kind, Reduction] = {
    "hessian": Reduction(_hessian, np.add, lambda k: k * k),
    "channel_absmax": Reduction(_reduced("ReduceMax", magnitude=True), np.maximum, lambda k: k),
    "channel_min": Reduction(_reduced("ReduceMin"), np.minimum, lambda k: k),
    "channel_max": Reduction(_reduced("ReduceMax"), np.maximum, lambda k: k),
    "channel_sum": Reduction(_reduced("ReduceSum"), np.add, lambda k: k),
    "channel_abs_sum": Reduction(_reduced("ReduceSum", magnitude=True), np.add, lambda k: k),
}


@dataclass(frozen=True)
class Request:
    """What is asked about one tensor.

    Attributes:
        tensor: Name of a value of the main graph whose last axis are channels.
        channels: Their number, K.
        kinds: What is wanted.
    """

    tensor: str
    channels: int
    kinds: tuple[Kind, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the float32 answers."""
        return 4 * sum(REDUCTIONS[kind].size(self.channels) for kind in self.kinds)


def merged(requests: Sequence[Request]) -> list[Request]:
    """One request a tensor: what several methods, or several readers of a tensor, ask for."""
    kinds: dict[tuple[str, int], dict[Kind, None]] = {}
    for request in requests:
        kinds.setdefault((request.tensor, request.channels), {}).update(dict.fromkeys(request.kinds))
    return [Request(tensor, channels, tuple(wanted)) for (tensor, channels), wanted in kinds.items()]
