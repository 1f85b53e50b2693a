"""Move finished files from the staging folder to where they belong, so that a kill at any moment does no harm."""

import logging
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from onnxq.errors import ModelError, OutputError, reason
from onnxq.model.load import guard
from onnxq.model.replacing import check_ending, output_errors
from onnxq.model.staging import MODEL, Journal, Move, sync_folder

_logger = logging.getLogger(__name__)


def check_output(output: Path, *, force: bool, overwrite_of: Path | None) -> None:
    """Refuse an output path that must not be written.

    Raises:
        OutputError: it exists and `force` is not set, it is a link or no ordinary file, its folder is missing, or its
            name is not that of an ONNX model.
    """
    if not output.parent.is_dir():
        raise OutputError(f"the folder '{output.parent}' does not exist; create it first")
    status = None
    with output_errors(f"cannot write '{output}'"), suppress(FileNotFoundError):
        status = output.lstat()
    if status is None:
        check_ending(output, ".onnx")
        return
    if stat.S_ISLNK(status.st_mode):
        raise OutputError(f"'{output}' is a symbolic link, which would be replaced; name the file it points to")
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"'{output}' is a folder; give a file name, such as '{output / 'model.onnx'}'")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"'{output}' is not a regular file")
    check_ending(output, ".onnx")
    if force:
        return
    if overwrite_of is not None and overwrite_of.exists() and output.samefile(overwrite_of):
        raise OutputError(f"'{output}' is the input; choose another output, or pass --force to replace the input")
    raise OutputError(f"'{output}' exists; pass --force to replace it")


def publish(folder: Path, output: Path, moves: Sequence[Move], obsolete: Sequence[str]) -> None:
    """Put data files and then the model in their places.

    Until the model is renamed everything can be undone, by `staging_folder` in this process or by the next run.

    Args:
        folder: the staging folder; holds the model as `MODEL`, and the data files of `moves`.
        output: where the model goes.
        moves: data files; a name without a backup must be free, and is taken first.
        obsolete: names in the output's folder to remove when the new model stands.

    Raises:
        OSError: nothing was changed, or will not be once the staging folder is settled.
    """
    parent = output.parent
    if moves or obsolete:
        Journal(list(moves), list(obsolete)).write(folder)
    for move in moves:
        target = parent / move.name
        if move.backup:
            target.replace(folder / move.backup)
        else:
            # Takes the name, so that another run that looks for a free one does not choose it too.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        (folder / move.staged).replace(target)
        sync_folder(target.parent)
    (folder / MODEL).replace(output)
    try:
        sync_folder(parent)
    except OSError as error:
        # The new output stands complete; the old one is gone from the name and cannot be brought back safely.
        _logger.warning("'%s' is complete, but may not outlast a power failure: %s", output, reason(error))


def data_of(model: Path) -> set[str]:
    """The locations of the external data of a model, if there is one at the path."""
    try:
        return set(guard(model).data)
    except ModelError:
        return set()


def free_name(output: Path) -> str:
    """A name for the data file of `output` that nothing has: `<output>.data`, else `<output>.1.data`, and so on.

    The data of an existing output keeps its name, so that the old output is complete until the new model takes over.
    """
    names = (f"{output.name}{middle}.data" for middle in chain([""], (f".{i}" for i in count(1))))
    return next(name for name in names if not os.path.lexists(output.parent / name))


def unused_data(output: Path) -> list[str]:
    """Data files, by a name that `free_name` gives, that no model of the folder uses but the one at `output`."""
    pattern = re.compile(re.escape(output.name) + r"(\.[0-9]+)?\.data")
    own = {name for name in data_of(output) if pattern.fullmatch(name)}
    if own:
        for other in output.parent.glob("*.onnx"):
            if other != output:
                own -= data_of(other)
    return sorted(own)
