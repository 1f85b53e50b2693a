"""Exporting leaves its surroundings as they were."""

import os
import sys
from types import SimpleNamespace

import pytest

from onnxq.exporters.surroundings import offline


def test_hubs_are_not_asked_and_what_was_set_before_is_set_again(monkeypatch):
    constants = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    others = dict(os.environ)

    def fail():
        with offline():
            assert os.environ == others | {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
            assert constants.HF_HUB_OFFLINE
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.environ == others
    assert not constants.HF_HUB_OFFLINE
