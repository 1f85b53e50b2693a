"""Which weight in which format: the best use of a budget of bits, never worse than one format for all."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxq.analysis.assignment import Assignment, Layers
from onnxq.analysis.laboratory import Effect, Laboratory, Progress, laboratory
from onnxq.analysis.spikes import skip_rules, spikes
from onnxq.errors import UsageError
from onnxq.model.load import Model, load
from onnxq.model.sites import Weight
from onnxq.passes.selection import Selection
from onnxq.passes.target import check_target
from onnxq.recipes import Recipe, Rule
from onnxq.recipes.rungs import LADDER, recipe_for
from onnxq.recipes.spec import Method
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.data import Source

# What the functions of one format and the nodes of one weight add to a file, at most. To take tiles apart takes tables.
_FUNCTION_BYTES, _TILED_FUNCTION_BYTES, _NODE_BYTES = 4096, 20480, 512


@dataclass(frozen=True)
class Allocation:
    """How a budget was spread over the weights of a model.

    Attributes:
        recipe: What `quantize` takes: each weight with its format.
        best: What the recipe is.
        tried: All that were measured, the best first.
        budget_bits: For each element, on average.
        frontier: Bits for each element and predicted KL of the assignments that no others beat, cheapest first.
        effects: What each weight does in each format, alone.
        load_seconds: What loading the model took, once.
        runs: Variants that ran.
        run_seconds: Spent on them.
    """

    recipe: Recipe
    best: Assignment
    tried: tuple[Assignment, ...]
    budget_bits: float
    frontier: tuple[tuple[float, float], ...]
    effects: tuple[Effect, ...]
    load_seconds: float
    runs: int
    run_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"recipe": self.recipe.model_dump(mode="json", exclude_defaults=True)}


def allocate(
    model: Model | str | Path,
    data: Source,
    *,
    bits: float | None = None,
    size_bytes: int | None = None,
    target: str = "ort",
    formats: Sequence[str | Path | Recipe] = LADDER,
    method: Method | None = "gptq",
    calibration: Calibration | None = None,
    spike_limit: float | None = None,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = 16,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Allocation:
    """Choose a format for each weight so that the model as a whole keeps to a budget and loses least.

    ZeroQ's way: each weight is quantized alone by each recipe, what that does to the predictions is taken to add up,
    and dynamic programming finds the best sum for the budget. It is measured with all weights quantized, and so is each
    recipe for all weights that fits the budget; the best of them is taken.

    Args:
        model: A loaded model, or the path of one.
        data: What variants are judged on: token ids, or named arrays.
        bits: The budget, for each element of the weights that some recipe quantizes, on average, with scales and zero
            points.
        size_bytes: The budget, of the file with its external data; instead of `bits`.
        target: Which the model is going to be quantized for: weights take the bytes that they take there.
        formats: To choose among: formats with their groups, such as `int3-g64`, presets, YAML files or recipes; from
            the one with the fewest bits up.
        method: In place of the methods that the recipes name; None keeps those.
        calibration: For methods that look at activations; by default the data itself.
        spike_limit: Leave layers float whose input has spikes beyond it (`onnxq.analysis.spikes`).
        sequence: Tokens in a window, where the data is a stream of tokens.
        batch: Windows or samples run at once.
        limit: Use only the first `limit` windows or samples to judge on; None uses all.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator, and weights solved at a time.
        progress: Called after each variant.

    Raises:
        UsageError: Neither or both of `bits` and `size_bytes`, a budget that no recipe keeps to, or no such target.
        RecipeError, ModelError, UnsafeModelError, DataError, NonFiniteError, SessionError: As `sensitivity`.
    """
    if (bits is None) == (size_bytes is None):
        raise UsageError("give a budget: either bits for each element (--bits), or the size of the file (--size)")
    if bits is not None and not math.isfinite(bits):
        raise UsageError(f"bits is {bits}; a budget is a number of bits for each element, such as 4.5")
    loaded = model if isinstance(model, Model) else load(model)
    rules: tuple[Rule, ...] = ()
    if spike_limit is not None:
        seen = calibration or Calibration(data, sequence=sequence, providers=providers)
        rules = skip_rules(spikes(loaded, seen), spike_limit)
    selection = Selection(exclude=tuple(name for rule in rules for name in rule.match.name))
    with laboratory(
        loaded,
        data,
        formats,
        target=check_target(target),
        method=method,
        calibration=calibration,
        sequence=sequence,
        batch=batch,
        limit=limit,
        providers=providers,
        threads=threads,
        selection=selection,
    ) as lab:
        _check_budget(lab, bits, size_bytes)
        layers = Layers(lab, threads, progress)
        if not layers.weights:
            raise UsageError("no weight of this model is quantized by any of these formats ('onnxq plan' says why)")
        budget = _budget(lab, layers.weights, bits, size_bytes)
        found = spread(layers, budget)
    return replace(found, recipe=found.recipe.with_rules(*rules))


def spread(layers: Layers, budget: int) -> Allocation:
    """Choose for each weight one of its options, so that all of them together keep to a budget of bytes.

    Raises:
        UsageError: No choice does.
    """
    lab = layers.lab
    chosen = _candidates(layers, [recipe.name for recipe in lab.recipes], budget)
    tried = sorted(
        ((layers.judge(name, numbers), numbers) for name, numbers in chosen.items()),
        key=lambda each: (each[0].measured, each[0].size_bytes),
    )
    best, numbers = tried[0]
    about = f"{best.bits:.2f} bits a weight, allocated within {8 * budget / layers.elements:.2f}"
    whole = layers.frontier()
    return Allocation(
        recipe=recipe_for("allocated", about, layers.decided(numbers)),
        best=best,
        tried=tuple(assignment for assignment, _ in tried),
        budget_bits=8 * budget / layers.elements,
        frontier=tuple(
            (8 * int(cost) / layers.elements, float(loss)) for cost, loss in zip(whole.costs, whole.losses, strict=True)
        ),
        effects=layers.effects,
        load_seconds=lab.swapping.load_seconds,
        runs=lab.trial.runs,
        run_seconds=lab.trial.run_seconds,
    )


def _candidates(layers: Layers, names: Sequence[str], budget: int) -> dict[str, tuple[int, ...]]:
    """Assignments within a budget that are worth measuring: one format for all, and the best by prediction.

    Layers in very few bits lose more together than each alone, so the best without the lowest formats are tried too.
    """
    found: dict[str, tuple[int, ...]] = {}
    for rung, name in enumerate(names):
        if sum(options[rung].size_bytes for options in layers.options) <= budget:
            found[f"{name} for all"] = (rung,) * len(layers.options)
    for lowest in range(len(names)):
        best = layers.frontier(lowest)
        point = best.within(budget)
        if point is None:
            break
        chosen = tuple(lowest + number for number in best.choices(point))
        if chosen not in found.values():
            found["allocated" if not lowest else f"allocated, {names[lowest]} and above"] = chosen
    if not found:
        cheapest = sum(min(option.size_bytes for option in options) for options in layers.options)
        raise _too_small(budget, cheapest, layers.elements)
    return found


def _check_budget(lab: Laboratory, bits: float | None, size_bytes: int | None) -> None:
    """Refuse a budget that no choice keeps to, before anything is solved."""
    concerned = [at for at in range(len(lab.weights)) if any(plan.decisions[at].spec for plan in lab.plans)]
    weights = [lab.weights[at] for at in concerned]
    budget = _budget(lab, weights, bits, size_bytes)
    cheapest = sum(min(plan.decisions[at].planned_bytes for plan in lab.plans) for at in concerned)
    if budget < cheapest:
        least = None if size_bytes is None else cheapest + _other_bytes(lab, weights)
        raise _too_small(budget, cheapest, sum(weight.size for weight in weights), least)


def _budget(lab: Laboratory, weights: Sequence[Weight], bits: float | None, size_bytes: int | None) -> int:
    """Bytes for some weights, from bits for each element or from what a size of the file leaves for them."""
    if bits is not None:
        return int(bits * sum(weight.size for weight in weights) / 8)
    return max(0, (size_bytes or 0) - _other_bytes(lab, weights))


def _other_bytes(lab: Laboratory, weights: Sequence[Weight]) -> int:
    """What a file will hold beside the codes and scales of some weights."""
    before = sum(weight.size_bytes for weight in weights)
    functions = sum(_TILED_FUNCTION_BYTES if plan.target == "ort-cuda" else _FUNCTION_BYTES for plan in lab.plans)
    return lab.model.size_bytes - before + functions + _NODE_BYTES * len(weights)


def _too_small(budget: int, cheapest: int, elements: int, least: int | None = None) -> UsageError:
    more = "more" if least is None else f"a file of {math.ceil(least / 1000)}kB"
    return UsageError(
        f"the budget is {8 * budget / elements:.2f} bits for each element; with these formats the weights take "
        f"{8 * cheapest / elements:.2f} at least: allow {more}, or add smaller formats"
    )
