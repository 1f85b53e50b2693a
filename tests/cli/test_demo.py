import json
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import UsageError

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

SAMPLE = Path(__file__).parents[2] / "samples" / "code_lm"


@pytest.mark.slow
def test_the_demonstration_keeps_its_promises(onnxq, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = onnxq("demo", "--json")
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
    shown = {each["name"]: each for each in json.loads(done.out)}
    assert list(shown) == ["float", "fp6", "fp4", "int4"]
    reference = shown["float"]
    for name, most_change, most_bits in (("fp6", 0.003, 6.25), ("fp4", 0.06, 4.6), ("int4", 0.05, 5.2)):
        each = shown[name]
        assert abs(each["value"] / reference["value"] - 1) < most_change
        assert each["bits_per_weight"] < most_bits
        assert each["size_bytes"] < 0.55 * reference["size_bytes"]
        assert len(each["text"]) > 50
    assert shown["int4"]["execution"]["fused"] == [{"bits": 4, "accuracy_level": 4, "count": 42}]


def test_the_demonstration_shows_one_table_and_the_texts(onnxq, small_sample, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("onnxq.cli.demo"), "_NEW_TOKENS", 8)
    done = onnxq("demo", "--sample", small_sample, "--keep", tmp_path / "kept", "--full")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["float", "fp6", "fp4", "int4"]
    assert done.out.count("def read_lines(path):") == 4
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["fp4.onnx", "fp6.onnx", "int4.onnx"]
    again = onnxq("demo", "--sample", small_sample, "--keep", tmp_path / "kept")
    assert again.code == 6
    assert "exists" in again.err


def test_the_sample_is_looked_for_around_us_and_around_the_package(tmp_path, monkeypatch):
    find = import_module("onnxq.cli.demo")._sample_folder
    monkeypatch.chdir(SAMPLE.parents[1])
    assert find(None) == Path("samples/code_lm")
    monkeypatch.chdir(tmp_path)
    assert find(None) == SAMPLE
    monkeypatch.setattr(import_module("onnxq.cli.demo"), "__file__", str(tmp_path / "onnxq" / "cli" / "demo.py"))
    with pytest.raises(UsageError, match="--sample DIR"):
        find(None)


@pytest.fixture
def small_sample(tmp_path):
    """The sample with 512 held-out tokens."""
    folder = tmp_path / "sample"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).symlink_to(SAMPLE / name)
    np.save(folder / "heldout.npy", np.load(SAMPLE / "heldout.npy")[:512])
    return folder
