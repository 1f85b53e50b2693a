"""What a search for formats found, in the plain form in which a report shows it."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from onnxq.errors import DataError

_Form = TypeVar("_Form")


@dataclass(frozen=True)
class LayerSensitivity:
    """What a model loses where one weight alone is quantized.

    Attributes:
        weight: Its name.
        format: What it is quantized to, as it shall be called in the legend.
        loss: In the metric of the `Sensitivity`; smaller is better.
    """

    weight: str
    format: str
    loss: float


@dataclass(frozen=True)
class Sensitivity:
    """Losses of many weights.

    Attributes:
        metric: What a loss is, with its unit: `output KL divergence, nats`.
        layers: In any order.
    """

    metric: str
    layers: tuple[LayerSensitivity, ...]

    @classmethod
    def from_dict(cls, data: Any) -> "Sensitivity":
        """From plain data of the same form.

        Raises:
            DataError: It has another form.
        """
        return _checked(cls, data)


@dataclass(frozen=True)
class Candidate:
    """A way to give each weight a format.

    Attributes:
        size_bytes: Of all weights.
        loss: In the metric of the `Frontier`; smaller is better.
        label: Its name, where it has one.
        kind: `frontier`: no other is better in both; `uniform`: one recipe for all weights; `chosen`: what was taken.
    """

    size_bytes: int
    loss: float
    label: str = ""
    kind: Literal["frontier", "uniform", "chosen"] = "frontier"


@dataclass(frozen=True)
class Frontier:
    """Size against loss.

    Attributes:
        metric: What a loss is, with its unit.
        candidates: In any order.
    """

    metric: str
    candidates: tuple[Candidate, ...]

    @classmethod
    def from_dict(cls, data: Any) -> "Frontier":
        """From plain data of the same form.

        Raises:
            DataError: It has another form.
        """
        return _checked(cls, data)


def _checked(kind: type[_Form], data: Any) -> _Form:
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"this is no {kind.__name__.lower()}: {where}: {first['msg']}") from None
