import mmap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxq.passes import record
from onnxq.passes.record import Recorder

# In a process of its own, which has little; Linux begins its highest mark with that of whoever started it.
PEAKS = """
import mmap
from onnxq.passes.record import peak_bytes
size = peak_bytes() + (64 << 20)
with mmap.mmap(-1, size) as pages:
    pages[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    print(size, peak_bytes())
"""


@pytest.fixture
def looks(monkeypatch):
    """Wait until a recorder has looked at the memory twice: once for certain from now on."""
    looked, real = threading.Semaphore(0), record._resident_bytes

    def counted() -> int:
        found = real()
        looked.release()
        return found

    def wait() -> None:
        while looked.acquire(blocking=False):
            pass
        assert looked.acquire(timeout=60)
        assert looked.acquire(timeout=60)

    monkeypatch.setattr(record, "_resident_bytes", counted)
    return wait


def _hold(mebibytes: int, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Have so much more memory resident for a while, with pages of its own: an array may get what the heap kept."""
    with mmap.mmap(-1, mebibytes << 20) as pages:
        pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)
        meanwhile()


def test_passes_are_recorded_in_order_with_their_time():
    recorder = Recorder()
    with recorder.during("first"), recorder.during("within"):
        pass
    assert [each.name for each in recorder.records] == ["within", "first"]
    assert all(each.seconds >= 0 for each in recorder.records)


def test_a_pass_that_fails_is_not_recorded():
    recorder = Recorder()
    with pytest.raises(ValueError, match="no"), recorder.during("bad"):
        raise ValueError("no")
    assert recorder.records == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is resident")
def test_a_pass_that_needs_less_than_the_one_before_says_so(looks):
    recorder = Recorder()
    with recorder.during("much"):
        _hold(64, looks)
    with recorder.during("little"):
        pass
    much, little = (each.peak_bytes or 0 for each in recorder.records)
    assert much - little > 50 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is resident")
def test_a_peak_below_the_highest_mark_of_the_process_is_seen(looks):
    recorder = Recorder()
    _hold(128)
    with recorder.during("nothing"):
        pass
    with recorder.during("half"):
        _hold(64, looks)
    nothing, half = (each.peak_bytes or 0 for each in recorder.records)
    assert 50 << 20 < half - nothing < 90 << 20


def test_no_thread_stays_behind():
    with pytest.raises(ValueError, match="no"), Recorder().during("bad"):
        raise ValueError("no")
    assert [each for each in threading.enumerate() if each.name == "onnxq memory"] == []


def test_the_peak_is_that_of_the_process_and_in_bytes(python, tmp_path):
    held, peak = map(int, python(PEAKS, cwd=tmp_path).split())
    assert held <= peak < held + (512 << 20)
