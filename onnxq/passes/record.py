"""How long each pass took, and how much memory it needed."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_INTERVAL_SECONDS = 0.02


@dataclass(frozen=True)
class PassRecord:
    """One pass over a model.

    Attributes:
        name: In words.
        seconds: Wall time.
        peak_bytes: Most memory that was resident in the process during the pass, memory-mapped pages of the model among
            it. On macOS the most until its end, on Windows None: these do not tell what is resident now.
    """

    name: str
    seconds: float
    peak_bytes: int | None


class Recorder:
    """Collects the records of one conversion."""

    def __init__(self) -> None:
        self.records: list[PassRecord] = []

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Record the block as a pass, if it ends well."""
        started, memory = time.perf_counter(), _Memory()
        try:
            yield
        finally:
            peak = memory.peak()
        self.records.append(PassRecord(name, time.perf_counter() - started, peak))


class _Memory:
    """The most memory that is resident from now on.

    The system keeps one highest mark for the whole life of a process, which says what a pass needed only if the pass
    raised it. Below it, a thread looks at what is resident fifty times a second.
    """

    def __init__(self) -> None:
        self._highest = peak_bytes()
        self._seen = 0
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        if _STATM.exists():
            self._watcher = threading.Thread(target=self._watch, name="onnxq memory", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        while True:
            self._seen = max(self._seen, _resident_bytes())
            if self._ended.wait(_INTERVAL_SECONDS):
                return

    def peak(self) -> int | None:
        """In bytes; ends the watching."""
        if self._watcher is None:
            return peak_bytes()
        self._ended.set()
        self._watcher.join()
        highest = peak_bytes()
        return highest if highest != self._highest else max(self._seen, _resident_bytes())


def _resident_bytes() -> int:
    """What is resident in this process now; Linux."""
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
    """Most memory that has ever been resident in this process; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in kB, macOS in bytes (getrusage(2)).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
