"""Every error a user can meet: one class a cause, each with the exit code the command line ends with.

A message names the thing, the place and the way out. Anything that is not an `OnnxqError` is a defect of onnxq.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class OnnxqError(Exception):
    """Base of all errors onnxq raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(OnnxqError):
    """A command or a call was given arguments that do not go together."""

    exit_code = 2


class RecipeError(OnnxqError):
    """A recipe is not valid: the message gives file, line, key and the nearest valid name."""

    exit_code = 3


class ModelError(OnnxqError):
    """A model file is broken, or holds something onnxq cannot keep."""

    exit_code = 4


class UnsafeModelError(ModelError):
    """A model file refers to data it must not reach, or is larger than the limits allow."""

    exit_code = 5


class OutputError(OnnxqError):
    """The output cannot be written; whatever stood there before is untouched."""

    exit_code = 6


class DataError(OnnxqError):
    """Calibration or evaluation data does not fit the model."""

    exit_code = 7


class NonFiniteError(OnnxqError):
    """A weight, a scale or a statistic holds NaN or Inf."""

    exit_code = 8


class MissingExtraError(OnnxqError):
    """An optional package is needed that is not installed; the message gives the `pip install` line."""

    exit_code = 9

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> "MissingExtraError":
        """Say which extra brings `package`, and what it was needed for."""
        return cls(f"{purpose} needs the package '{package}', which is not installed: pip install 'onnxq[{extra}]'")


class SessionError(OnnxqError):
    """Onnxruntime refused the model or failed while running it."""

    exit_code = 10


def number_of(count: int, noun: str) -> str:
    """`1 weight`, `2,048 weights`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def reason(error: Exception) -> str:
    """What the system says about a file, without number and path; all that an error says where it is another one."""
    return str(getattr(error, "strerror", None) or error)


def with_others(first: str, others: int) -> str:
    """`a`, `a and 1 other`, `a and 2 others`."""
    return f"{first} and {number_of(others, 'other')}" if others else first


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names and points at the nearest one."""
    valid = list(valid)
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"
