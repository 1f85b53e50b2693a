"""Charts as numbers: where dots, lines and labels lie, in percent of a chart's width and height.

The page draws them in SVG that is stretched to whatever room there is, and puts the labels over it as text, so that
they stay readable on a phone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Tick:
    """A label at a place of an axis, in percent."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A range of values.

    Attributes:
        low: Where it begins.
        high: Where it ends; greater than `low`.
        step: Between labels; for `log`, powers of ten between them.
        log: Equal distances are equal ratios; both ends are then powers of ten.
        unit: Behind the number of the last tick.
    """

    low: float
    high: float
    step: float
    log: bool = False
    unit: str = ""

    @classmethod
    def over(cls, values: Iterable[float], *, unit: str = "", log: bool = False, least: float = 0.0) -> "Axis":
        """An axis that begins and ends at round numbers around all finite values.

        Args:
            values: For `log`, those that are not positive do not count.
            unit: Of the values.
            log: Powers of ten.
            least: How much the axis covers at least, so that small differences look small; not for `log`.
        """
        kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(kept), max(kept)
        if log:
            first = math.floor(math.log10(low))
            last = max(math.ceil(math.log10(high)), first + 1)
            return cls(10.0**first, 10.0**last, max(1, math.ceil((last - first) / 6)), True, unit)
        missing = max(0.0, least - (high - low))
        low, high = low - missing / 2, high + missing / 2
        step = _round_step(high - low or abs(high) or 1.0)
        return cls(math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step, False, unit)

    def place(self, value: float) -> float:
        """How far along the axis a value lies; what is beyond an end lies on it."""
        if self.log:
            value = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            value = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(value, 0.0), 1.0), 2)

    @property
    def ticks(self) -> list[Tick]:
        """Three to seven labels."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            values = [10.0**power for power in range(first, last + 1, round(self.step))]
        else:
            count = round((self.high - self.low) / self.step)
            values = [self.low + self.step * number for number in range(count + 1)]
        texts = [_power_text(value) if self.log else f"{value:.10g}" for value in values]
        texts[-1] += f" {self.unit}".rstrip()
        return [Tick(self.place(value), text) for value, text in zip(values, texts, strict=True)]


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        x: From the left.
        y: From the top.
        series: Number of its colour.
        title: All there is to say about it.
        link: Id of a row of the page, or empty.
        label: What stands beside it, or empty.
    """

    x: float
    y: float
    series: int
    title: str
    link: str = ""
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """Dots on two axes.

    Attributes:
        about: For those who do not see it.
        dots: In the order in which they are painted.
        y_ticks: From the top.
        x_ticks: From the left.
        series: Name of each colour.
        line: Dots that a line joins.
        x_label: What runs along the bottom.
        marks: Places along the bottom that have no dot.
    """

    about: str
    dots: tuple[Dot, ...]
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...] = ()
    series: tuple[str, ...] = ()
    line: tuple[Dot, ...] = ()
    x_label: str = ""
    marks: tuple[float, ...] = field(default=())

    @property
    def line_path(self) -> str:
        """The line in SVG."""
        return "M" + "L".join(f"{dot.x} {dot.y}" for dot in self.line) if self.line else ""

    @property
    def mark_path(self) -> str:
        """The marks in SVG."""
        return "".join(f"M{at} 100v-4" for at in self.marks)


def from_top(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Ticks of an axis that runs upwards."""
    return tuple(Tick(round(100 - tick.at, 2), tick.text) for tick in ticks)


def steps(counts: Sequence[int], height: int) -> str:
    """Bars of equal width as one SVG path, the highest `height` high, in a box as wide as there are counts."""
    top = max(counts, default=0) or 1
    bars = "".join(f"V{height - round(height * count / top)}h1" for count in counts)
    return f"M0 {height}{bars}V{height}z"


def _power_text(value: float) -> str:
    """A power of ten: `0.01`, `10⁻⁵`."""
    power = round(math.log10(value))
    return f"{value:g}" if -4 < power < 4 else f"10{str(power).translate(_SUPERSCRIPT)}"


def _round_step(extent: float) -> float:
    """1, 2 or 5 times a power of ten, so that about four steps make up the extent."""
    rough = extent / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999))
