"""How long each pass took, and how much memory the process has needed by then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class PassRecord:
    """One pass over a model.

    Attributes:
        name: In words.
        seconds: Wall time.
        peak_bytes: Most memory that was resident in the process until the end of this pass, memory-mapped pages of the
            model among it. A pass that needs less than those before it leaves the number as it was. None where the
            system does not tell.
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
        started = time.perf_counter()
        yield
        self.records.append(PassRecord(name, time.perf_counter() - started, peak_bytes()))


def peak_bytes() -> int | None:
    """Most memory that has ever been resident in this process; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in kB, macOS in bytes (getrusage(2)).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
