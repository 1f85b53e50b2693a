"""The hidden folder in which an output grows, and what happens to it when a process dies.

The folder is locked as long as its process lives, so the next run knows which ones were left behind. Before anything
is moved out of it, a journal in it says what will be moved: whoever finds the folder later can undo a move that stopped
half-way, or finish one that only had old files left to remove.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onnxq.errors import UnsafeModelError, reason
from onnxq.model.external import check_location

PREFIX = ".onnxq-staging-"
MODEL = "model.onnx"
_JOURNAL = "journal.json"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP))

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Move:
    """A data file on its way to `name`, relative to the output folder; `backup` is what stood there before."""

    staged: str
    name: str
    inode: int
    backup: str | None = None


@dataclass(slots=True)
class Journal:
    """Everything that publishing an output does to its folder, besides the model file itself."""

    moves: list[Move] = field(default_factory=list)
    # Data files of the output that is replaced, removed once nothing refers to them.
    obsolete: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Put the journal on the disk, complete or not at all."""
        partial = folder / f"{_JOURNAL}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / _JOURNAL)
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """The journal of a staging folder, or None if publishing had not begun."""
        try:
            content = json.loads((folder / _JOURNAL).read_text("utf-8"))
            journal = cls([Move(**move) for move in content["moves"]], content["obsolete"])
            for name in (*(move.name for move in journal.moves), *journal.obsolete):
                check_location(name, str(folder))
        except (OSError, ValueError, TypeError, KeyError, UnsafeModelError):
            return None
        return journal


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, locked while it lasts; it is gone afterwards, whatever happens.

    Raises:
        OSError: the folder cannot be made.
    """
    remove_abandoned(parent)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        _settle(folder)
        os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Settle and remove the staging folders that dead processes left in `parent`."""
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        with suppress(OSError):
            lock = _lock(folder)
            try:
                _settle(folder)
            finally:
                os.close(lock)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power failure.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Another run may take the new folder for an abandoned one before it is locked; then a new one is made.
        with suppress(BlockingIOError, FileNotFoundError):
            try:
                lock = _lock(folder)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                # A file system without locks: nobody can tell that this folder was abandoned, so it would stay.
                lock = os.open(folder, _FOLDER)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder and give its descriptor; BlockingIOError if a living process has it."""
    descriptor = os.open(folder, _FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _settle(folder: Path) -> None:
    """Leave the output either as it was or complete, and remove the folder."""
    try:
        if (journal := Journal.read(folder)) is not None:
            if (folder / MODEL).exists():
                _undo(folder, journal)
            else:
                for name in journal.obsolete:
                    (folder.parent / name).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        _logger.warning("the staging folder '%s' could not be removed: %s", folder, reason(error))


def _undo(folder: Path, journal: Journal) -> None:
    for move in journal.moves:
        target = folder.parent / move.name
        if move.backup:
            # Without the backup in the folder, the file that stood there was not yet touched.
            with suppress(FileNotFoundError):
                (folder / move.backup).replace(target)
            continue
        with suppress(FileNotFoundError):
            status = target.lstat()
            # Empty is the placeholder that holds the name until the file takes it.
            if status.st_ino == move.inode or (status.st_size == 0 and (folder / move.staged).exists()):
                target.unlink()
