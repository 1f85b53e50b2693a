"""`Request`: what somebody wants to know about a tensor, and how many requests become few."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from onnxq.statistics.reductions import LIMITS, REDUCTIONS, Kind, Shape
from onnxq.statistics.views import ALL, LAST, View

T = TypeVar("T")


class Key(NamedTuple):
    """What an answer is about: tensor, kind, the label of a view, and for `cross` the other tensor."""

    tensor: str
    kind: Kind
    view: str
    other: str = ""


@dataclass(frozen=True)
class Request:
    """What is asked about one tensor.

    Attributes:
        tensor: Name of a value of the main graph.
        channels: K, channels of a row; of no meaning for what is asked about a whole tensor.
        kinds: What is wanted.
        view: What of the tensor is a row of channels; answers about a whole tensor do not look at it.
        other: For `cross`, X'Y: the other tensor's name and channels; it is seen through the same view.
    """

    tensor: str
    channels: int
    kinds: tuple[Kind, ...]
    view: View = LAST
    other: tuple[str, int] | None = None

    @property
    def keys(self) -> dict[Key, Shape]:
        """The answers to expect, with their shapes; the number of rows among them."""
        other, width = self.other or ("", 0)
        shapes: dict[Key, Shape] = {Key(self.tensor, "rows", self.view.label, other): ()}
        for kind in self.kinds:
            if kind != "rows":
                shape = REDUCTIONS[kind].shape(self.view.groups, self.channels, width)
                shapes[Key(self.tensor, kind, self.view.label, other)] = shape
        return shapes

    @property
    def size_bytes(self) -> int:
        """Bytes of the float32 answers."""
        return 4 * sum(math.prod(shape) for shape in self.keys.values())


def merged(requests: Iterable[Request]) -> list[Request]:
    """One request a tensor and view: what several methods, or several readers of a tensor, ask for.

    Raises:
        ValueError: One tensor is said to have two numbers of channels.
    """
    found: dict[tuple[str, View, tuple[str, int] | None], Request] = {}
    for request in requests:
        for part in _parts(request):
            key = (part.tensor, part.view, part.other)
            before = found.setdefault(key, part)
            if before.channels != part.channels:
                raise ValueError(f"'{part.tensor}' has {before.channels} channels, not {part.channels}")
            found[key] = replace(before, kinds=tuple(dict.fromkeys((*before.kinds, *part.kinds))))
    return list(found.values())


def _parts(request: Request) -> Iterator[Request]:
    """What is about channels, what is about two tensors, and what is about a whole tensor apart."""
    kinds = tuple(dict.fromkeys(each for kind in request.kinds for each in (*LIMITS.get(kind, ()), kind)))
    whole = [kind for kind in kinds if kind != "rows" and REDUCTIONS[kind].whole]
    if "cross" in request.kinds:
        if request.other is None or request.view.rank is None or request.view.groups > 1:
            raise ValueError(f"cross moments of '{request.tensor}' need another tensor, and rows of both")
        yield replace(request, kinds=("cross",))
    channels = tuple(kind for kind in kinds if kind not in whole and kind != "cross")
    if channels:
        yield replace(request, kinds=channels, other=None)
    if whole:
        yield Request(request.tensor, 1, tuple(whole), ALL)


def grouped(items: Iterable[T], size_bytes: Callable[[T], int], budget_bytes: int) -> Iterator[list[T]]:
    """Groups of requests, or of what asks them, whose answers fit the budget together; at least one at a time."""
    group: list[T] = []
    left = budget_bytes
    for item in items:
        size = size_bytes(item)
        if group and size > left:
            yield group
            group, left = [], budget_bytes
        group.append(item)
        left -= size
    if group:
        yield group
