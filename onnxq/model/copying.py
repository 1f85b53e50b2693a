"""What a byte-identical copy needs beside the model file: its data files, under the names that the model gives."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnxq.errors import OutputError
from onnxq.model.external import components
from onnxq.model.growing import write_all
from onnxq.model.load import Source
from onnxq.model.mapped import CHUNK_BYTES, DataFile
from onnxq.model.staging import Move


def copy_moves(
    source: Source, output: Path, folder: Path, *, force: bool, advance: Callable[[int], None]
) -> list[Move]:
    """Copy into the staging `folder` each data file that does not stand beside `output` already.

    Args:
        source: whose data files are copied.
        output: the model file of the copy.
        folder: the staging folder.
        force: replace a file of the same name with other content.
        advance: called with the size of each piece that was written.

    Raises:
        OutputError: a name is taken by another file, and `force` is not set; or a folder on the way is a link.
        OSError: the disk is full, or failed.
    """
    moves: list[Move] = []
    for location, file in source.data.items():
        target = output.parent / location
        if target == output:
            raise OutputError(f"'{output}' is also the name of the model's external data; choose another output")
        exists = os.path.lexists(target)
        if exists and _same(target, file):
            advance(file.size)
            continue
        if exists and not force:
            raise OutputError(
                f"'{target}' exists with other content, and the copy needs a data file of that name; "
                "choose another folder, or pass --force to replace it"
            )
        _make_folders(output.parent, location)
        number = len(moves)
        staged = folder / f"data-{number}"
        copy_file(file, staged, advance)
        moves.append(Move(staged.name, location, staged.stat().st_ino, f"old-{number}" if exists else None))
    return moves


def _same(target: Path, file: DataFile) -> bool:
    status = target.lstat()
    if (status.st_dev, status.st_ino) == file.identity:
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        return False
    with target.open("rb") as other:
        for start in range(0, file.size, CHUNK_BYTES):
            piece = file.view(start, min(CHUNK_BYTES, file.size - start))
            if not np.array_equal(piece, np.frombuffer(other.read(len(piece)), np.uint8)):
                return False
    return True


def _make_folders(parent: Path, location: str) -> None:
    for name in components(location)[:-1]:
        parent = parent / name
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            raise OutputError(f"'{parent}' is a link or not a folder, and the copy needs a folder of that name")
        parent.mkdir(exist_ok=True)


def copy_file(file: DataFile, path: Path, advance: Callable[[int], None]) -> None:
    """Write the content of `file` to the new file `path`, onto the disk.

    Raises:
        OSError: the disk is full, or failed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for start in range(0, file.size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, file.size - start)
            write_all(descriptor, file.view(start, length).data)
            advance(length)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
