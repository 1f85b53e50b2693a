"""How what is known about layers looks in a terminal."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import number_of
from onnxq.report.text import Name, op_text, seconds_text, shape_text, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxq.analysis.allocation import Allocation
    from onnxq.analysis.perturbation import Perturbations
    from onnxq.analysis.sensitivity import Sensitivity
    from onnxq.analysis.spikes import Spike


def layers_shown(found: "Sensitivity | Perturbations | Sequence[Spike]", worst: int) -> "Iterator[RenderableType]":
    """The layers that matter most, in any of the views."""
    from onnxq.analysis.perturbation import Perturbations
    from onnxq.analysis.sensitivity import Sensitivity

    if isinstance(found, Sensitivity):
        yield from _sensitivity(found, worst)
    elif isinstance(found, Perturbations):
        yield from _perturbations(found, worst)
    else:
        yield from _spikes(found, worst)


def _sensitivity(found: "Sensitivity", worst: int) -> "Iterator[RenderableType]":
    from rich.text import Text

    made = table(
        {
            "weight": "name",
            "op": "word",
            "shape": "word",
            "recipe": "word",
            "format": "word",
            "bits": "number",
            "SQNR dB": "number",
            "KL": "number",
            "loss": "number",
            "same answers": "number",
        }
    )
    for each in found.worst(worst):
        made.add_row(
            Name(each.label),
            op_text(each.op),
            shape_text(each.shape),
            each.recipe,
            each.format,
            f"{each.bits:.2f}",
            f"{each.weight_sqnr_db:.1f}",
            f"{each.kl:.2e}",
            "" if math.isnan(each.loss_change) else f"{each.loss_change:+.4f}",
            f"{each.agreement:.1%}",
        )
    yield made
    yield from _rest(len(found.effects), worst)
    if found.skipped:
        left = number_of(len(found.skipped), "weight")
        yield Text(f"{left} left float by all of these recipes ('onnxq plan' says why)")
    yield Text(_speed(found.runs, found.run_seconds, found.load_seconds, found.samples))


def _perturbations(found: "Perturbations", worst: int) -> "Iterator[RenderableType]":
    from rich.text import Text

    made = table({"weight": "name", "op": "word", "KL, noise in the weight": "number", "in its input": "number"})
    for each in sorted(found.layers, key=lambda layer: -max(layer.weight_kl, layer.input_kl or 0.0))[:worst]:
        inputs = "" if each.input_kl is None else f"{each.input_kl:.2e}"
        made.add_row(Name(each.label), op_text(each.op), f"{each.weight_kl:.2e}", inputs)
    yield made
    yield from _rest(len(found.layers), worst)
    yield Text(f"\n{found.kind} noise at {found.sqnr_db:g} dB, on {number_of(found.samples, 'sample')}")


def _spikes(found: "Sequence[Spike]", worst: int) -> "Iterator[RenderableType]":
    from rich.text import Text

    made = table({"input": "name", "kappa": "number", "largest": "number", "read with": "text"})
    for each in found[:worst]:
        made.add_row(Name(each.tensor), f"{each.kappa:.1f}", f"{each.largest:.4g}", ", ".join(each.labels))
    yield made
    yield from _rest(len(found), worst)
    yield Text("\nkappa: the largest value over the median of the largest of each token; beyond 20 it is a spike")


def allocated(found: "Allocation", output: Path) -> "Iterator[RenderableType]":
    """What was tried, which formats were taken, and where the recipe is."""
    from rich.text import Text

    made = table({"tried": "text", "bits": "number", "KL": "number", "predicted": "number", "loss": "number"})
    for each in found.tried:
        loss = "" if math.isnan(each.loss_change) else f"{each.loss_change:+.4f}"
        style = "bold" if each is found.best else None
        made.add_row(each.name, f"{each.bits:.3f}", f"{each.measured:.2e}", f"{each.predicted:.2e}", loss, style=style)
    yield made
    yield Text()
    taken = table({"weights": "number", "as": "text"})
    for rule in found.recipe.rules:
        taken.add_row(str(len(rule.match.name)), rule.weight.describe() if rule.weight else str(rule.skip))
    yield taken
    yield Text(_speed(found.runs, found.run_seconds, found.load_seconds))
    yield Text(f"Wrote {output}: {found.best.bits:.3f} bits for each element, of {found.budget_bits:.3f}")


def _rest(count: int, worst: int) -> "Iterator[RenderableType]":
    from rich.text import Text

    if (more := count - worst) > 0:
        yield Text(f"and {more} more (--worst N, --json)")


def _speed(runs: int, run_seconds: float, load_seconds: float, samples: int | None = None) -> str:
    on = "" if samples is None else f" on {number_of(samples, 'sample')}"
    each = run_seconds / max(runs, 1)
    saved = f"loading the model for each would take {seconds_text(load_seconds)} more"
    return f"\n{number_of(runs, 'variant')}{on} in one session, {seconds_text(each)} each; {saved}"
