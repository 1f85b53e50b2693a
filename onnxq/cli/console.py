"""The two streams of the command line: results on stdout, everything else on stderr."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from rich.console import Console, RenderableType

# A pipe has no width; wide enough that nothing is wrapped or cut there.
_PIPE_WIDTH = 10_000


class _Stream(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to `main`; rich would end the process here."""
        raise BrokenPipeError


def _stream(*, stderr: bool) -> Console:
    stream = _Stream(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not _is_terminal(stream):
        stream.width = _PIPE_WIDTH
    return stream


def _is_terminal(stream: Console) -> bool:
    """Whether somebody looks on; rich takes any stream for a terminal where FORCE_COLOR asks for colours in a log."""
    return stream.file.isatty()


def show(*parts: RenderableType) -> None:
    """Print results."""
    stream = _stream(stderr=False)
    for part in parts:
        stream.print(part)


def tell(message: RenderableType, style: str | None = None) -> None:
    """Print a message on stderr."""
    _stream(stderr=True).print(message, style=style)


def show_json(data: Any) -> None:
    """Print plain data; JSON has no NaN and no Inf, which become null."""
    print(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Advance(Protocol):
    """What moves a progress bar."""

    def __call__(self, done: int, total: int, now: str | None = None) -> None:
        """Show what is done, of all there is to do, and `now` as the name of it; another total is another task."""


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A bar on stderr while the block runs, if that is a terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    stream = _stream(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stream, transient=True, disable=not _is_terminal(stream)) as bar:
        task = bar.add_task(label, total=None)

        def advance(done: int, total: int, now: str | None = None) -> None:
            if bar.tasks[0].total not in (None, total):
                # The time left is told from the speed of this task alone.
                bar.reset(task, description=label)
            bar.update(task, description=now, completed=done, total=total)

        yield advance
