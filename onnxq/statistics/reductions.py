"""What can be asked about a tensor: each answer is computed inside the graph, and only the small result comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxq.statistics.nodes import Nodes

Kind = Literal[
    "hessian",
    "cross",
    "channel_absmax",
    "channel_min",
    "channel_max",
    "channel_sum",
    "channel_abs_sum",
    "channel_square_sum",
    "absmax",
    "min",
    "max",
    "sum",
    "histogram",
    "channel_histogram",
    "rows",
]
"""`rows`, the number of rows seen, comes with every other kind."""

Merge = Literal["sum", "min", "max"]
Shape = tuple[int, ...]
Array = NDArray[np.float64]

BINS = 4096
CHANNEL_BINS = 128
# A range that is narrower is one bin: float32 has no number of bins for each unit of it.
_NARROWEST = 1e-30
# What bins lie between, which is found in a pass before.
LIMITS: dict[Kind, tuple[Kind, Kind]] = {
    "histogram": ("min", "max"),
    "channel_histogram": ("channel_min", "channel_max"),
}


@dataclass(frozen=True)
class Given:
    """What an answer is computed from.

    Attributes:
        rows: [n, K] or [groups, n, K] float32; for answers about a whole tensor the tensor.
        rank: Of the rows.
        other: Rows of the other tensor, for `cross`.
        limits: Smallest and largest value, for `histogram`; of each channel, [K], for `channel_histogram`.
    """

    rows: str
    rank: int | None
    other: str | None = None
    limits: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Reduction:
    """One answer.

    Attributes:
        nodes: Adds what computes the answer; the name of the result.
        merge: How the answers about two batches become the answer about both.
        shape: Of the answer, given groups, K, and K of the other tensor.
        whole: It is about all elements alike, not about channels.
    """

    nodes: Callable[[Nodes, Given], str]
    merge: Merge
    shape: Callable[[int, int, int], Shape]
    whole: bool = False


def _per_channel(groups: int, k: int, _: int) -> Shape:
    return (k,) if groups == 1 else (groups, k)


def _hessian(nodes: Nodes, given: Given) -> str:
    return nodes.add("MatMul", _turned(nodes, given), given.rows)


def _cross(nodes: Nodes, given: Given) -> str:
    return nodes.add("MatMul", _turned(nodes, given), given.other or "")


def _turned(nodes: Nodes, given: Given) -> str:
    return nodes.add("Transpose", given.rows, perm=[1, 0] if given.rank == 2 else [0, 2, 1])


def _reduce(operator: str, of: Sequence[str] = (), *, whole: bool = False) -> Callable[[Nodes, Given], str]:
    """Over all rows, each channel for itself, or over everything; of a function of the elements."""

    def nodes(made: Nodes, given: Given) -> str:
        source = given.rows
        for function in of:
            source = made.add("Mul", source, source) if function == "Square" else made.add(function, source)
        axis = None if whole else {2: 0, 3: 1}[given.rank or 2]
        return made.reduced(operator, source, axis)

    return nodes


def _histogram(nodes: Nodes, given: Given) -> str:
    """Counts of `BINS` equal bins between the limits, int64."""
    flat = nodes.add("Reshape", given.rows, nodes.ints(-1))
    return _counts(nodes, _bins(nodes, flat, given, BINS), BINS)


def _channel_histogram(nodes: Nodes, given: Given) -> str:
    """Counts of `CHANNEL_BINS` equal bins between the limits of each channel, int64, channel by channel."""
    channels = 1 if given.limits is None else given.limits[0].size
    bins = _bins(nodes, given.rows, given, CHANNEL_BINS)
    first = nodes.add("Constant", value_ints=[CHANNEL_BINS * channel for channel in range(channels)])
    flat = nodes.add("Reshape", nodes.add("Add", bins, first), nodes.ints(-1))
    return _counts(nodes, flat, channels * CHANNEL_BINS)


def _bins(nodes: Nodes, values: str, given: Given, bins: int) -> str:
    """Which bin each value lies in, int64."""
    low, high = given.limits or (np.zeros(()), np.zeros(()))
    per_unit = np.divide(bins, high - low, out=np.zeros_like(high), where=high - low > _NARROWEST)
    place = nodes.add("Mul", nodes.add("Sub", values, nodes.floats(low)), nodes.floats(per_unit))
    inside = nodes.add("Clip", nodes.add("Floor", place), nodes.number(0.0), nodes.number(bins - 1.0))
    return nodes.add("Cast", inside, to=TensorProto.INT64)


def _counts(nodes: Nodes, bins: str, length: int) -> str:
    # ScatterElements adds since opset 16. Unique, many times slower, counts what it finds: each bin once more.
    if nodes.opset < 16:
        every = nodes.add("Concat", bins, nodes.ints(*range(length)), axis=0)
        counts = nodes.several("Unique", every, outputs=4)[3]
        return nodes.add("Sub", counts, nodes.ints(1))
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    ones = nodes.add("ConstantOfShape", nodes.add("Shape", bins), value=one)
    return nodes.add("ScatterElements", nodes.ints(*[0] * length), bins, ones, reduction="add")


REDUCTIONS: dict[Kind, Reduction] = {
    "hessian": Reduction(_hessian, "sum", lambda g, k, _: (k, k) if g == 1 else (g, k, k)),
    "cross": Reduction(_cross, "sum", lambda _, k, other: (k, other)),
    "channel_absmax": Reduction(_reduce("ReduceMax", ["Abs"]), "max", _per_channel),
    "channel_min": Reduction(_reduce("ReduceMin"), "min", _per_channel),
    "channel_max": Reduction(_reduce("ReduceMax"), "max", _per_channel),
    "channel_sum": Reduction(_reduce("ReduceSum"), "sum", _per_channel),
    "channel_abs_sum": Reduction(_reduce("ReduceSum", ["Abs"]), "sum", _per_channel),
    "channel_square_sum": Reduction(_reduce("ReduceSum", ["Square"]), "sum", _per_channel),
    "absmax": Reduction(_reduce("ReduceMax", ["Abs"], whole=True), "max", lambda *_: (), whole=True),
    "min": Reduction(_reduce("ReduceMin", whole=True), "min", lambda *_: (), whole=True),
    "max": Reduction(_reduce("ReduceMax", whole=True), "max", lambda *_: (), whole=True),
    "sum": Reduction(_reduce("ReduceSum", whole=True), "sum", lambda *_: (), whole=True),
    "histogram": Reduction(_histogram, "sum", lambda *_: (BINS,), whole=True),
    "channel_histogram": Reduction(_channel_histogram, "sum", lambda _, k, __: (k, CHANNEL_BINS)),
}
