import mmap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from onnxq.passes.record import Recorder, peak_bytes


def _hold(mebibytes: int) -> None:
    """Have so much more memory resident for a moment, with pages of its own: an array may get what the heap kept."""
    with mmap.mmap(-1, mebibytes << 20) as pages:
        pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)
        time.sleep(0.05)


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
def test_a_pass_that_needs_less_than_the_one_before_says_so():
    recorder = Recorder()
    with recorder.during("much"):
        _hold(64)
    with recorder.during("little"):
        pass
    much, little = (each.peak_bytes or 0 for each in recorder.records)
    assert much - little > 50 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is resident")
def test_a_peak_below_the_highest_mark_of_the_process_is_seen():
    recorder = Recorder()
    _hold(128)
    with recorder.during("nothing"):
        pass
    with recorder.during("half"):
        _hold(64)
    nothing, half = (each.peak_bytes or 0 for each in recorder.records)
    assert 50 << 20 < half - nothing < 90 << 20


def test_no_thread_stays_behind():
    before = threading.active_count()
    with pytest.raises(ValueError, match="no"), Recorder().during("bad"):
        raise ValueError("no")
    assert threading.active_count() == before


def test_the_peak_is_that_of_the_process_and_in_bytes():
    before = peak_bytes()
    assert before is not None
    held = np.ones(before + (64 << 20), np.uint8)
    after = peak_bytes()
    assert after is not None
    assert held.size <= after < held.size + 4 * before + (1 << 30)
