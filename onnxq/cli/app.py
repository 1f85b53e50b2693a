"""The application that all commands belong to, and how it ends: what goes wrong becomes a message and an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated

import typer

from onnxq.cli.console import tell
from onnxq.cli.help import Commands
from onnxq.errors import OnnxqError

# sysexits.h: EX_SOFTWARE, an error inside the program.
_DEFECT = 70
_BROKEN_PIPE = 128 + signal.SIGPIPE

app = typer.Typer(
    name="onnxq",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        import onnxq

        print(f"onnxq {onnxq.__version__}")
        raise typer.Exit


@app.callback()
def _onnxq(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Turn an exported ONNX model into a smaller one, in FP6, FP4 or INT4, and run it in onnxruntime.

    Begin with 'onnxq demo', or with 'onnxq quantize model.onnx -o small.onnx'; 'onnxq COMMAND --help' has examples.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the one of the process) and give the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A name in a model can hold what the terminal's encoding lacks.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    try:
        with _signals_raise():
            return _run(arguments)
    except BrokenPipeError:
        # Whoever read has seen enough. What is still buffered must not fail once more when the process ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _run(arguments: Sequence[str] | None) -> int:
    try:
        typer.main.get_command(app).main(arguments, prog_name="onnxq")
        code = 0
    except _Stopped as stopped:
        tell(f"stopped by {stopped.signal.name}")
        code = 128 + stopped.signal
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        raise
    except OnnxqError as error:
        tell(f"error: {error}", style="red")
        code = error.exit_code
    except MemoryError:
        tell("error: there is not enough memory", style="red")
        code = 1
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        tell("error: this is a defect of onnxq; please report it with the lines above", style="red")
        code = _DEFECT
    sys.stdout.flush()
    return code


class _Stopped(SystemExit):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the signals that end a process raise `_Stopped` instead, so that nothing is left half-written."""

    def stop(number: int, _: FrameType | None) -> None:
        # Only raised here: printing could interrupt a print.
        raise _Stopped(number)

    # A signal that is ignored stays so: under nohup, or in the background of a script.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [each for each, handler in before.items() if handler in usual]
    try:
        for each in caught:
            signal.signal(each, stop)
    except ValueError:
        # Python allows it in the main thread only; another thread gets no signals either.
        caught = []
    try:
        yield
    finally:
        for each in caught:
            signal.signal(each, before[each])
