"""Numbers and names as people read them."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

Column = Literal["name", "word", "number", "text"]
"""A `name` is shortened and a `text` wrapped where there is no room; the others keep their width."""

# Of a long name, what stands at its end tells more: model.layers.0.self_attn.q_proj.weight.
_HEAD_SHARE = 0.3
_NARROWEST = 12


def size_text(size_bytes: int) -> str:
    """`10.7 MB`; a kB is 1000 bytes."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    if unit == "bytes":
        return f"{size_bytes} bytes"
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"


def seconds_text(seconds: float) -> str:
    """`0.17 s`, `12 s` or `3 min 20 s`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def shape_text(shape: Sequence[int]) -> str:
    """`256x704`."""
    return "x".join(map(str, shape))


def op_text(op: str) -> str:
    """The type of an operator without its domain."""
    return op.rpartition("::")[2]


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` characters, its middle left out."""
    if len(name) <= width:
        return name
    head = int((width - 1) * _HEAD_SHARE)
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


class Name:
    """A table cell that shortens its text to the width the table has for it."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\n", " ")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From the narrowest that still tells names apart to the whole."""
        return Measurement(min(len(self._text), _NARROWEST), len(self._text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """One line."""
        yield Segment(shorten(self._text, options.max_width))
        yield Segment.line()


def table(columns: dict[str, Column]) -> Table:
    """An empty table in the one style: its headers, each with what stands below."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, kind in columns.items():
        # Only what may wrap gives way where the table is wider than the terminal.
        justify: JustifyMethod = "right" if kind == "number" else "left"
        fixed = kind in ("number", "word")
        made.add_column(header, justify=justify, no_wrap=fixed, min_width=None if fixed else _NARROWEST)
    return made


def counted(counts: dict[str, int]) -> Text:
    """One line a reason, its count before it."""
    width = max(len(str(count)) for count in counts.values())
    return Text("\n".join(f"  {count:>{width}}  {reason}" for reason, count in counts.items()))
