import numpy as np
import pytest

from onnxq.passes.record import Recorder, peak_bytes


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


def test_the_peak_is_that_of_the_process_and_in_bytes():
    before = peak_bytes()
    assert before is not None
    held = np.ones(before + (64 << 20), np.uint8)
    after = peak_bytes()
    assert after is not None
    assert held.size <= after < held.size + 4 * before + (1 << 30)
