import sys

import numpy as np
import pytest

from onnxq.errors import MissingExtraError, UsageError
from onnxq.methods.backend import get_module


def test_weights_are_solved_by_numpy_on_processors():
    assert get_module("cpu") is np


def test_what_a_gpu_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtraError, match=r"device cuda needs the package 'cupy.*onnxq\[gpu\]"):
        get_module("cuda")


def test_another_device_is_refused():
    with pytest.raises(UsageError, match="no device 'tpu': cpu or cuda"):
        get_module("tpu")
