"""How what `evaluate` and `compare` find looks in a terminal."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onnxq.errors import number_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from onnxq.analysis.abilities import Abilities
    from onnxq.analysis.comparison import Comparison, Difference
    from onnxq.analysis.evaluate import Evaluation
    from onnxq.analysis.robustness import Robustness


def evaluation_shown(found: "Evaluation", sequence: int, checked: "Abilities | Robustness | None" = None) -> "Table":
    """What a model is worth, how fast it is, and how its weights ran."""
    from rich.table import Table

    lines = Table.grid(padding=(0, 2))
    if found.metric == "perplexity":
        where = f"{number_of(found.tokens, 'token')} predicted in {number_of(found.samples, 'window')} of {sequence}"
        lines.add_row("perplexity", f"{found.value:.4f}", where)
        lines.add_row("speed", f"{found.tokens_per_second:,.0f} tokens/s", f"{found.seconds:.2f} s in onnxruntime")
    else:
        right = round(found.value * found.samples)
        lines.add_row("accuracy", f"{found.value:.2%}", f"{right} of {number_of(found.samples, 'sample')}")
        lines.add_row("speed", f"{found.samples / found.seconds:,.0f} samples/s", f"{found.seconds:.2f} s")
    for row in _checks(checked):
        lines.add_row(*row)
    for number, sentence in enumerate(found.execution.sentences()):
        lines.add_row("" if number else "how it ran", "", sentence)
    return lines


def _checks(checked: "Abilities | Robustness | None") -> "Iterator[tuple[str, str, str]]":
    from onnxq.analysis.abilities import Abilities

    if checked is None:
        return
    if isinstance(checked, Abilities):
        yield "next token", f"{checked.next_token:.2%}", f"of {checked.tokens:,} tokens have the highest score"
        without = f"{checked.unseen:.2%} where they come first"
        yield "copying", f"{checked.copying:.2%}", f"of {checked.copied:,} random tokens that come again; {without}"
        return
    change = f"by {checked.strength:.3g} at most, {number_of(checked.samples, 'sample')}"
    yield "with noise", f"{checked.noise:.2%}", change
    how = "" if checked.exact else "; from random directions, a weak attack"
    yield "attacked", f"{checked.attacked:.2%}", f"along the gradient (FGSM), {change}{how}"


def comparison_shown(found: "Comparison", worst: int | None) -> "Iterator[RenderableType]":
    """Outputs, decisions, and the layers furthest apart; with `worst` None, all layers in their order."""
    from rich.text import Text

    yield _differences("output", found.outputs)
    yield from map(Text, _outcomes(found))
    if worst != 0 and found.layers:
        yield Text()
        if worst is None:
            yield _differences("layer", found.layers)
        else:
            yield _differences("layer, furthest apart first", found.worst(worst))
            if (more := len(found.layers) - worst) > 0:
                yield Text(f"and {number_of(more, 'closer layer')} (--worst N, --along, --json)")
        yield Text(_jump(found))
    for name, reason in found.skipped.items():
        yield Text(f"not compared: {name}: {reason}", style="yellow")
    yield Text(f"\n{number_of(found.samples, 'sample')}")
    for model, execution in zip("AB", found.execution, strict=True):
        yield Text(f"{model}: " + "; ".join(execution.sentences()))


def _outcomes(found: "Comparison") -> Iterator[str]:
    for each in found.agreements:
        shared = "" if each.shared is None else f"; {each.shared:.2%} of the best {each.best} shared"
        yield f"{each.name}: the same best in {each.same_best:.2%} of {number_of(each.rows, 'row')}{shared}"
    if found.worst_samples:
        listed = ", ".join(f"{each.sample} ({each.sqnr_db:.1f} dB)" for each in found.worst_samples)
        yield f"samples furthest apart: {listed}"


def _jump(found: "Comparison") -> str:
    jump = found.jump()
    if jump is None:
        return "The error jumps nowhere: no layer is 6 dB worse than all before it"
    before, at = jump
    now = f"{at.nonfinite:,} NaN or Inf" if at.nonfinite else f"{at.sqnr_db:.1f} dB"
    until = "" if before is None else f", where nothing before it was under {before.sqnr_db:.1f} dB"
    where = f"{at.name} of {at.module}" if at.module else at.name
    return f"The error jumps first at {where}: {now}{until}"


def _differences(title: str, rows: "Sequence[Difference]") -> "Table":
    from onnxq.report.text import Column, Name, op_text, table

    modules: dict[str, Column] = {"module": "name"} if any(each.module for each in rows) else {}
    made = table(
        {
            title: "name",
            **modules,
            "operator": "word",
            "SQNR dB": "number",
            "cosine": "number",
            "largest difference": "number",
        }
    )
    for each in rows:
        ratio = "equal" if each.sqnr_db == math.inf else f"{each.sqnr_db:.1f}"
        broken = f"{each.nonfinite:,} NaN or Inf" if each.nonfinite else None
        made.add_row(
            Name(each.name),
            *([Name(each.module)] if modules else []),
            op_text(each.operator),
            ratio,
            f"{each.cosine:.6f}",
            broken or f"{each.max_abs:.3g}",
            style="red" if broken else None,
        )
    return made
