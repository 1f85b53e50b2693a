"""What a search for formats found, in the plain form in which a report shows it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from onnxq.errors import DataError, reason

_MAX_BYTES = 64 << 20
_PREDICTED = "KL divergence of the predictions from the float model's, nats"


@dataclass(frozen=True)
class LayerLoss:
    """What a model loses where one weight alone is quantized.

    Attributes:
        weight: Its name.
        how: The format or recipe it is quantized by, as it shall be called in the legend.
        loss: In the metric of all; smaller is better.
    """

    weight: str
    how: str
    loss: float


@dataclass(frozen=True)
class LayerLosses:
    """The losses of many weights.

    Attributes:
        metric: What a loss is, with its unit.
        losses: In any order.
    """

    metric: str
    losses: tuple[LayerLoss, ...]


@dataclass(frozen=True)
class Candidate:
    """A way to give each weight a format.

    Attributes:
        bits: That an element of the weights takes on average, with scales and zero points.
        loss: In the metric of the `Tradeoff`; smaller is better.
        label: Its name, where it has one.
        kind: `frontier`: no other is better in both; `tried`: another one that was looked at, such as one format for
            all; `chosen`: what was taken.
    """

    bits: float
    loss: float
    label: str = ""
    kind: Literal["frontier", "tried", "chosen"] = "frontier"


@dataclass(frozen=True)
class Tradeoff:
    """Size against loss.

    Attributes:
        metric: What a loss is, with its unit.
        candidates: In any order.
    """

    metric: str
    candidates: tuple[Candidate, ...]


def read_findings(path: str | Path) -> tuple[LayerLosses, Tradeoff | None]:
    """Take what `onnxq sensitivity --json` or `onnxq allocate --json` printed into a file.

    Returns:
        What each weight alone does to the predictions, and of an allocation the frontier too.

    Raises:
        DataError: There is no such file, or it is something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise DataError(f"the findings '{path}' are longer than {_MAX_BYTES:,} bytes, and are not read")
        found = _Findings.model_validate(json.loads(text))
    except OSError as error:
        raise DataError(f"cannot read the findings '{path}': {reason(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"'{path}' is no JSON of 'onnxq sensitivity' or 'allocate': {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no JSON: {error}") from None
    losses = LayerLosses(
        _PREDICTED, tuple(LayerLoss(each.weight, each.recipe, each.kl) for each in found.effects if each.kl is not None)
    )
    if not found.frontier:
        return losses, None
    candidates = [Candidate(bits, loss) for bits, loss in found.frontier]
    for each in found.tried:
        taken = found.best is not None and each.name == found.best.name
        candidates.append(Candidate(each.bits, each.predicted, each.name, "chosen" if taken else "tried"))
    return losses, Tradeoff(f"{_PREDICTED}, predicted from each weight alone", tuple(candidates))


class _Effect(BaseModel):
    weight: str
    recipe: str
    kl: float | None


class _Assignment(BaseModel):
    name: str
    bits: float
    predicted: float


class _Findings(BaseModel):
    """The parts that are shown; there is more."""

    effects: tuple[_Effect, ...]
    frontier: tuple[tuple[float, float], ...] = ()
    best: _Assignment | None = None
    tried: tuple[_Assignment, ...] = ()
