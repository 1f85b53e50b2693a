"""A `Report` as tables for a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.errors import number_of
from onnxq.report.contents import Contents, Entry, bits_each, bytes_after, bytes_before, tally
from onnxq.report.text import Name, counted, op_text, seconds_text, shape_text, size_text, table


def summary(report: Contents) -> Iterator[RenderableType]:
    """What a conversion did: weights by format, those left as they are by reason, the file, notes and warnings."""
    yield from _changes(report)
    if report.quantized:
        yield from (_by_format(report), Text())
    yield from _worst(report)
    yield from _skipped(report)
    yield from _activations(report)
    yield Text(_outcome(report))
    yield from _notes(report)


def planned(report: Contents) -> Iterator[RenderableType]:
    """What a conversion would do: each weight with its format or the reason why not, and the sums."""
    if report.entries:
        yield from (_weights(report), Text())
    if report.activations:
        yield from (_each_activation(report), Text())
    yield from _skipped(report)
    yield from _activations(report)
    share = f" ({len(report.quantized)} of {number_of(len(report.entries), 'weight')})" if report.entries else ""
    after = report.model_bytes - bytes_before(report.entries) + bytes_after(report.entries)
    yield Text(
        f"recipe {report.recipe}, target {report.target}: {size_text(report.model_bytes)} would become about "
        f"{size_text(after)}{share}"
    )
    yield from _notes(report)


def _by_format(report: Contents) -> Table:
    made = table(
        {
            "format": "word",
            "weights": "number",
            "bytes before": "number",
            "after": "number",
            "bits each": "number",
            "SQNR dB": "number",
        }
    )
    formats = sorted({str(each.format) for each in report.quantized})
    for name in formats:
        entries = [each for each in report.quantized if each.format == name]
        made.add_row(name, *_sums(entries), f"{bits_each(entries):.2f}", _quality(entries))
    if report.skipped:
        made.add_row("left as is", *_sums(report.skipped))
    rest = report.model_bytes - bytes_before(report.entries), report.output_bytes - bytes_after(report.entries)
    made.add_row("rest of the file", "", *(f"{size:,}" for size in rest))
    made.add_row("file", str(len(report.entries)), f"{report.model_bytes:,}", f"{report.output_bytes:,}", style="bold")
    return made


def _weights(report: Contents) -> Table:
    made = table(
        {
            "weight": "name",
            "op": "word",
            "shape": "word",
            "bytes before": "number",
            "after": "number",
            "format, or why it stays": "text",
        }
    )
    for each in report.entries:
        shape = shape_text(each.shape)
        what = Text(str(each.spec)) if each.format else Text(str(each.reason), style="dim")
        made.add_row(Name(each.label), op_text(each.op), shape, f"{each.size_bytes:,}", f"{each.result_bytes:,}", what)
    sums = number_of(len(report.entries), "weight"), "", "", *_sums(report.entries)[1:]
    made.add_row(*sums, f"{len(report.quantized)} quantized", style="bold")
    return made


def _skipped(report: Contents) -> Iterator[RenderableType]:
    if report.skipped:
        yield Text(f"Left as they are: {len(report.skipped)} of {number_of(len(report.entries), 'weight')}")
        yield counted(report.reasons)


def _each_activation(report: Contents) -> Table:
    made = table({"activation": "name", "read by": "word", "readers": "number", "format, or why it stays": "text"})
    for each in report.activations:
        what = Text(str(each.spec)) if each.format else Text(str(each.reason), style="dim")
        made.add_row(Name(each.tensor), op_text(each.op), str(len(each.readers)), what)
    return made


def _activations(report: Contents) -> Iterator[RenderableType]:
    """How many activations are rounded to what, and why others are not."""
    rounded = tally([str(each.spec) for each in report.activations if each.format])
    if rounded:
        counts = "; ".join(f"{count} {spec}" for spec, count in rounded.items())
        yield Text(f"Activations quantized: {sum(rounded.values())} of {len(report.activations)} ({counts})")
    if kept := tally([str(each.reason) for each in report.activations if not each.format]):
        yield Text(f"Activations left as they are: {sum(kept.values())} of {len(report.activations)}")
        yield counted(kept)


def _changes(report: Contents) -> Iterator[RenderableType]:
    """What each step did, how often, and where it did nothing."""
    for step in dict.fromkeys(each.step for each in report.changes):
        here = [each for each in report.changes if each.step == step]
        done = [str(each.done) for each in here if each.done is not None]
        yield Text(f"{step}: {len(done)} of {number_of(len(here), 'place')} changed")
        if done:
            yield counted(tally(done))
        if len(done) < len(here):
            yield Text("left alone:")
            yield counted(tally([str(each.reason) for each in here if each.done is None]))


def _outcome(report: Contents) -> str:
    took = f"in {seconds_text(report.seconds)}"
    if report.is_copy:
        return f"Nothing was quantized: {report.output} is a byte-identical copy, written {took}"
    ratio = f"{report.output_bytes / report.model_bytes:.0%} of {size_text(report.model_bytes)}"
    return f"Wrote {report.output}: {size_text(report.output_bytes)}, {ratio}, {took}"


def _notes(report: Contents) -> Iterator[RenderableType]:
    """Warnings last, where they are seen."""
    for note in report.notes:
        yield Text(f"note: {note}")
    for warning in report.warnings:
        yield Text(f"warning: {warning}", style="yellow")


def _sums(entries: Sequence[Entry]) -> tuple[str, str, str]:
    # All digits, so that the columns add up.
    return str(len(entries)), f"{bytes_before(entries):,}", f"{bytes_after(entries):,}"


def _quality(entries: Sequence[Entry]) -> str:
    """The range of the signal to noise ratios."""
    ratios = [each.sqnr_db for each in entries if each.sqnr_db is not None]
    if not ratios:
        return ""
    low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
    return low if low == high else f"{low} … {high}"


def _worst(report: Contents) -> Iterator[RenderableType]:
    """The weight that rounding changed most."""
    measured = [each for each in report.quantized if each.sqnr_db is not None]
    if measured:
        worst = min(measured, key=lambda each: each.sqnr_db or 0.0)
        yield Text(f"Lowest SQNR: {worst.sqnr_db:.1f} dB, {worst.label} ({worst.format})")
