"""Which places of a model gain by a rotation, tried out on rows of its activations."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from onnxq.methods.equalize.choose import Cost, Rounding, choose, output_error
from onnxq.methods.equalize.rotation import Rotation
from onnxq.passes.rotation.fold import Folding, Turns, numbers_of, rotated_weight
from onnxq.passes.rotation.linear import Linear
from onnxq.passes.rotation.norm import Norm


@dataclass(frozen=True)
class Place:
    """Somewhere a rotation can go.

    Attributes:
        name: Of it.
        done: What a rotation of it is called in the report.
        put: Rotates it.
        before: Linears whose input it rotates.
        behind: Linears whose output it rotates.
        online: It takes an operator that runs with the model.
    """

    name: str
    done: str
    put: Callable[[Folding], None]
    before: tuple[Linear, ...]
    behind: tuple[Linear, ...]
    online: bool = False


_logger = logging.getLogger(__name__)
_REASONS = {True: "a rotation does not lower the error on the data", False: "nothing around it is quantized"}

Roundings = Callable[[Linear], tuple[Rounding, Rounding] | None]
"""How the input and the weight of a linear are rounded; None where neither is."""


def costs_of(places: Sequence[Place], rows: Mapping[str, np.ndarray], roundings: Roundings) -> list[Cost]:
    """What each linear costs, with and without the rotations around it."""
    everything = Folding()
    for place in places:
        place.put(everything)
    before = {linear: at for at, place in enumerate(places) for linear in place.before}
    behind = {linear: at for at, place in enumerate(places) for linear in place.behind}
    made = []
    for linear in dict.fromkeys((*before, *behind)):
        rounding = roundings(linear)
        if rounding is None:
            continue
        turns, errors = everything.of(linear), np.zeros((2, 2))
        for x, y in product((0, 1), repeat=2):
            errors[x, y] = _error(linear, rows[str(linear.x.name)], _part(turns, x=bool(x), y=bool(y)), rounding)
        made.append(Cost(before.get(linear), behind.get(linear), errors))
    return made


def choose_places(places: Sequence[Place], costs: Sequence[Cost]) -> list[str | None]:
    """For each place None where it is to be rotated, else why not."""
    chosen = choose(len(places), costs)
    touched = {at for each in costs for at in (each.before, each.behind)}
    for at, place in enumerate(places):
        flipped = [*chosen[:at], not chosen[at], *chosen[at + 1 :]]
        now, then = (
            sum(each.at(which) for each in costs if at in (each.before, each.behind)) for which in (chosen, flipped)
        )
        how = "rotated" if chosen[at] else "as it is"
        _logger.info("'%s' %s: error %.4g, else %.4g", place.name, how, now, then)
    return [None if rotated else _REASONS[at in touched] for at, rotated in enumerate(chosen)]


def _part(turns: Turns, *, x: bool, y: bool) -> Turns:
    return Turns(turns.x if x else None, turns.y if y else [], turns.norm if x else None)


def _error(linear: Linear, rows: np.ndarray, turns: Turns, rounding: tuple[Rounding, Rounding]) -> float:
    weight = rotated_weight(linear, turns).astype(np.float32)
    given = _rotated_rows(rows, turns.norm, turns.x)
    return output_error(given, weight, *rounding)


def _rotated_rows(rows: np.ndarray, norm: Norm | None, turn: Rotation | None) -> np.ndarray:
    """What a linear reads once norm and rotation have changed places."""
    if turn is None:
        return rows
    made = rows.astype(np.float64)
    if norm is not None:
        if norm.shift is not None:
            made = made - numbers_of(norm.shift)
        scale = numbers_of(norm.scale)
        # What a norm multiplies by zero cannot be had back.
        made = np.divide(made, scale, out=np.zeros_like(made), where=scale != 0)
    return turn.apply(made).astype(np.float32)
