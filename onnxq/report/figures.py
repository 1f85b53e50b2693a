"""What the page of a report shows as pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxq.errors import number_of
from onnxq.formats import LEARNED_FORMATS, get_format
from onnxq.methods.histogram import BINS, span
from onnxq.report.chart import Axis, Chart, Dot, Tick, from_top, steps
from onnxq.report.contents import Contents, Entry
from onnxq.report.findings import Candidate, LayerLosses, Tradeoff
from onnxq.report.text import shorten

# As many grid lines as a picture of a few hundred pixels can tell apart.
_MOST_GRID_LINES = 64
_HEIGHT, _SMALL_HEIGHT = 100, 16
_KINDS = {"frontier": "Pareto frontier", "tried": "other", "chosen": "chosen"}
_LABEL_WIDTH = 32
_FAR_BELOW = 1e-6
# Labels closer than this, in percent of the width and height, would lie over each other.
_LABEL_ROOM = 20.0, 8.0
# Less is not worth a look.
_LEAST_DB = 10.0


@dataclass(frozen=True)
class Segment:
    """A part of a bar: a label, bytes, the number of its colour or None for grey, and its share of the longest bar."""

    label: str
    size_bytes: int
    series: int | None
    percent: float


@dataclass(frozen=True)
class Outline:
    """How the values of a weight lie on the grid of its format.

    Attributes:
        row: Number of its row.
        entry: The weight.
        path: SVG, `BINS` wide and 100 high.
        grid: SVG of the values of the format, from the top of that box to 10 below it; empty where there are too many.
        low: The smallest value of the format.
        high: The largest.
    """

    row: int
    entry: Entry
    path: str
    grid: str
    low: float
    high: float


def formats_of(report: Contents) -> tuple[str, ...]:
    """The formats in use, each once: the order of their colours."""
    return tuple(sorted({str(each.format) for each in report.quantized}))


def size_bars(report: Contents) -> list[tuple[str, list[Segment]]]:
    """Two bars, before and after: weights by format, weights left as they are, and the rest of the file."""
    longest = max(report.model_bytes, report.output_bytes, 1)

    def bar(total: int, *, after: bool) -> list[Segment]:
        def weigh(entries: Sequence[Entry]) -> int:
            return sum(each.result_bytes if after else each.size_bytes for each in entries)

        parts: list[tuple[str, int, int | None]] = [
            (name, weigh([each for each in report.quantized if each.format == name]), number)
            for number, name in enumerate(formats_of(report))
        ]
        parts.append(("left as is", weigh(report.skipped), None))
        parts.append(("rest of the file", total - weigh(report.entries), None))
        return [Segment(*part, round(100 * part[1] / longest, 3)) for part in parts if part[1] > 0]

    bars = [("before", bar(report.model_bytes, after=False))]
    return [*bars, ("after", bar(report.output_bytes, after=True))] if report.output_bytes else bars


def layers_chart(report: Contents) -> Chart | None:
    """SQNR of each weight, in graph order; those left as they are have a mark at the bottom."""
    found = [(row, each, each.sqnr_db) for row, each in enumerate(report.entries) if each.sqnr_db is not None]
    if not found:
        return None
    axis = Axis.over((ratio for _, _, ratio in found), unit="dB", least=_LEAST_DB)
    formats, worst = formats_of(report), min(found, key=lambda item: item[2])[0]
    dots = tuple(
        Dot(
            x=_middle(row, len(report.entries)),
            y=round(100 - axis.place(ratio), 2),
            series=formats.index(str(each.format)),
            title=f"{each.label}: {ratio_text(ratio)} ({each.format})",
            link=f"w{row}",
            label=shorten(each.label, _LABEL_WIDTH) if row == worst and len(found) > 1 else "",
        )
        for row, each, ratio in found
    )
    skipped = tuple(_middle(row, len(report.entries)) for row, each in enumerate(report.entries) if not each.format)
    lowest = ratio_text(min(ratio for _, _, ratio in found))
    about = f"SQNR of {number_of(len(found), 'weight')} in graph order, from {lowest} up."
    return Chart(about, dots, from_top(axis.ticks), series=formats, x_label="weights in graph order", marks=skipped)


def losses_chart(report: Contents, losses: LayerLosses) -> Chart | None:
    """Loss of each weight alone, in graph order, a colour for each format or recipe."""
    rows = {each.weight: row for row, each in enumerate(report.entries)}
    labels = {each.weight: each.label for each in report.entries}
    known = [each for each in losses.losses if each.weight in rows and math.isfinite(each.loss)]
    if not known:
        return None
    axis = _loss_axis([each.loss for each in known])
    ways = tuple(dict.fromkeys(each.how for each in known))
    worst = max(known, key=lambda each: each.loss)
    dots = tuple(
        Dot(
            x=_middle(rows[each.weight], len(rows)),
            y=round(100 - axis.place(each.loss), 2),
            series=ways.index(each.how),
            title=f"{labels[each.weight]}: {each.loss:.3g} ({each.how})",
            link=f"w{rows[each.weight]}",
            label=shorten(labels[each.weight], _LABEL_WIDTH) if each is worst and len(known) > 1 else "",
        )
        for each in known
    )
    about = f"{losses.metric}, of {number_of(len(known), 'weight')} quantized alone, up to {worst.loss:.3g}."
    return Chart(about, dots, from_top(axis.ticks), series=ways, x_label="weights in graph order")


def tradeoff_chart(tradeoff: Tradeoff) -> Chart | None:
    """Bits of an element against loss; a line joins the candidates that no other beats."""
    known = sorted((each for each in tradeoff.candidates if math.isfinite(each.loss)), key=lambda each: each.bits)
    if not known:
        return None
    x, y = Axis.over(each.bits for each in known), _loss_axis([each.loss for each in known])

    def dot(each: Candidate) -> Dot:
        title = f"{each.label or _KINDS[each.kind]}: {each.bits:.2f} bits, loss {each.loss:.3g}"
        place = x.place(each.bits), round(100 - y.place(each.loss), 2)
        return Dot(*place, series=list(_KINDS).index(each.kind), title=title, label=each.label)

    # The one that was taken lies above the others, and has its label in any case.
    dots = sorted(map(dot, known), key=lambda each: each.series)
    return Chart(
        about=f"{tradeoff.metric}, against bits, of {number_of(len(known), 'way')} to give each weight a format.",
        dots=tuple(reversed(_with_room(dots[::-1]))),
        y_ticks=from_top(y.ticks),
        x_ticks=tuple(x.ticks),
        series=tuple(_KINDS.values()),
        line=tuple(dot(each) for each in known if each.kind == "frontier"),
        x_label="bits that an element of the weights takes, with scales",
    )


def _with_room(dots: Sequence[Dot]) -> list[Dot]:
    """The same dots, without labels that would lie over that of an earlier one."""
    made: list[Dot] = []
    for each in dots:
        labelled = [other for other in made if other.label]
        near = any(
            abs(each.x - other.x) < _LABEL_ROOM[0] and abs(each.y - other.y) < _LABEL_ROOM[1] for other in labelled
        )
        made.append(replace(each, label="") if near else each)
    return made


def outlines(report: Contents, count: int) -> list[Outline]:
    """The weights that rounding changed most, and how their values lie on the grid."""
    found = [(row, each) for row, each in enumerate(report.entries) if each.histogram and each.sqnr_db is not None]
    worst = sorted(found, key=lambda item: item[1].sqnr_db or 0.0)[:count]
    return [_outline(row, each) for row, each in worst]


def small_outline(entry: Entry) -> str:
    """The histogram of a weight as SVG for a box `BINS` wide and 16 high; empty where there is none."""
    return steps(entry.histogram, _SMALL_HEIGHT) if entry.histogram else ""


def ratio_text(ratio: float | None) -> str:
    """`31.2 dB`; nothing was lost: `exact`."""
    if ratio is None:
        return ""
    return f"{ratio:.1f} dB" if math.isfinite(ratio) else "exact"


def _outline(row: int, entry: Entry) -> Outline:
    kind = get_format(str(entry.format))
    low, high = span(kind)
    values = sorted({float(value) for value in kind.values if math.isfinite(value)})
    grid = ""
    # A learned table is another one in each weight.
    if len(values) <= _MOST_GRID_LINES and kind.name not in LEARNED_FORMATS:
        grid = "".join(f"M{(value - low) / (high - low) * BINS:.3g} 0V{_HEIGHT + 10}" for value in values)
    return Outline(row, entry, steps(entry.histogram, _HEIGHT), grid, low, high)


def _loss_axis(losses: Sequence[float]) -> Axis:
    """Losses of formats differ by powers of ten; what is far under the largest, or not positive, lies at the bottom."""
    largest = max(losses)
    seen = [loss for loss in losses if loss > largest * _FAR_BELOW]
    return Axis.over(seen, log=True) if largest > 20 * min(seen, default=largest) else Axis.over(losses)


def _middle(row: int, rows: int) -> float:
    return round(100 * (row + 0.5) / rows, 2)


def first_and_last(rows: int) -> tuple[Tick, ...]:
    """Labels of the first and the last of some rows."""
    return (Tick(_middle(0, rows), "1"), Tick(_middle(rows - 1, rows), str(rows))) if rows > 1 else ()
