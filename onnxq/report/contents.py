"""`Contents` of a report: what a conversion did to each weight and activation, and why it left others alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxq.model.named import Named
from onnxq.passes.record import PassRecord
from onnxq.passes.step import Change


@dataclass(frozen=True)
class Entry(Named):
    """One weight.

    Attributes:
        shape: As the operators read it.
        size_bytes: Before, with no scales.
        result_bytes: After: codes, scales and zero points; `size_bytes` where nothing was done.
        format: What it is in now; None where it stayed float.
        spec: How it was quantized, in words; None where it stayed float.
        sqnr_db: Signal to quantization noise of its values; None where it stayed float.
        reason: Why it stayed float; None where it was quantized.
        histogram: How its values lie on the grid of its format (`onnxq.methods.histogram`); not in JSON.
    """

    shape: tuple[int, ...]
    size_bytes: int
    result_bytes: int
    format: str | None = None
    spec: str | None = None
    sqnr_db: float | None = None
    reason: str | None = None
    histogram: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Activation:
    """One value that is multiplied with weights, or that an integer convolution puts out.

    Attributes:
        tensor: Its name.
        op: Type of the first operator that reads it.
        readers: Names of the nodes that this is about; where others read the same value otherwise, it stands twice.
        format: What it is rounded to; None where it stays float.
        spec: How, in words; None where it stays float.
        reason: Why it stays float; None where it is rounded.
    """

    tensor: str
    op: str
    readers: tuple[str, ...]
    format: str | None = None
    spec: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Contents:
    """A conversion, or with `output` None the plan of one.

    Attributes:
        model: The input file, or None for a model in memory.
        output: The file written, or None where nothing was written.
        recipe: Name of the recipe.
        target: Where the model goes: `ort`, `native`, `standard`, `ort-int8` or `ort-cuda`.
        entries: One for each weight of the model; their number is that of all weights.
        model_bytes: Size of the input with its external data.
        output_bytes: Size of the output with its external data; 0 where nothing was written.
        seconds: Wall time.
        notes: How the model runs, and what it was calibrated on.
        warnings: Where accuracy or speed is less than the recipe promises, and what was asked for and not done; each
            with the way out where there is one.
        changes: What the steps of the recipe did to the float model before its weights were quantized, and what was
            corrected afterwards.
        activations: What becomes of each activation; empty where no rule of the recipe is about them.
        version: Of onnxq.
        passes: What the time went to, in order.
        recipe_text: The recipe, as YAML.
        versions: Of Python and of the packages that took part.
        is_copy: The output is the input, byte for byte.
    """

    model: str | None
    output: str | None
    recipe: str
    target: str
    entries: tuple[Entry, ...]
    model_bytes: int
    output_bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    version: str = ""
    changes: tuple[Change, ...] = ()
    activations: tuple[Activation, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    recipe_text: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    is_copy: bool = False

    @property
    def quantized(self) -> tuple[Entry, ...]:
        """Weights that were quantized."""
        return tuple(each for each in self.entries if each.format is not None)

    @property
    def skipped(self) -> tuple[Entry, ...]:
        """Weights that stayed float, each with its reason."""
        return tuple(each for each in self.entries if each.format is None)

    @property
    def reasons(self) -> dict[str, int]:
        """How many weights stayed float for each reason, the most frequent first."""
        return tally([str(each.reason) for each in self.skipped])


def tally(reasons: Sequence[str]) -> dict[str, int]:
    """How often each reason stands, the most frequent first."""
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def bytes_before(entries: Sequence[Entry]) -> int:
    """What some weights took in the input."""
    return sum(each.size_bytes for each in entries)


def bytes_after(entries: Sequence[Entry]) -> int:
    """What they take in the output."""
    return sum(each.result_bytes for each in entries)


def bits_each(entries: Sequence[Entry], *, before: bool = False) -> float:
    """Bits that an element takes in the file, with scales and zero points; `before` the conversion if asked."""
    elements = sum(math.prod(each.shape) for each in entries)
    return 8 * (bytes_before(entries) if before else bytes_after(entries)) / elements if elements else math.nan
