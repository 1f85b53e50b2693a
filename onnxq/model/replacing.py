"""Small files that appear complete or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxq.errors import OutputError, reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path`, whose file takes its place once it is written and on the disk.

    Where writing fails, what stood at `path` stays, and nothing is left beside it.

    Raises:
        OSError: The disk is full or failed, or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_ending(path: Path, *endings: str) -> None:
    """Refuse the name of an output that others would not take for what it is.

    Args:
        path: The file to write.
        endings: Of its name, in small letters; the first is the usual one.

    Raises:
        OutputError: The name has none of them.
    """
    if path.suffix.lower() not in endings:
        raise OutputError(f"'{path}' does not end in {' or '.join(endings)}; call it '{path.name}{endings[0]}'")


def write_text(path: Path, text: str, what: str) -> None:
    """Write a file; it appears complete or not at all, and replaces one that stands there.

    Args:
        path: The file.
        text: Its content.
        what: How an error calls it.

    Raises:
        OutputError: It cannot be written.
    """
    with (
        output_errors(f"cannot write {what} '{path}'"),
        replacing(path) as partial,
        partial.open("x", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)


@contextmanager
def output_errors(failure: str, consequence: str = "") -> Iterator[None]:
    """Let what the system says about a file be an OutputError.

    Args:
        failure: What could not be done, which the reason follows.
        consequence: What follows the reason.

    Raises:
        OutputError: In the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{failure}: {reason(error)}{consequence}") from error
