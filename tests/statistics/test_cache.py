"""A file of statistics: exact, complete or not there at all, and refused where it is damaged or of something else."""

import json
import os

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from onnxq.errors import DataError, NonFiniteError, OutputError, UsageError
from onnxq.model.load import load
from onnxq.statistics import cache
from onnxq.statistics.cache import collected, load_statistics, save
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.requests import Request
from onnxq.statistics.views import Axis

TEXT = "g (float[n, 6] x) => (float[n, 4] y) { h = Relu(x) y = MatMul(h, w) }"
ASKED = [Request("h", 6, ("hessian", "channel_max", "absmax")), Request("h", 6, ("cross",), other=("x", 6))]


@pytest.fixture
def loaded(model, integers):
    return model(TEXT, w=integers(6, 4))


@pytest.fixture
def data(integers):
    return integers(9, 6)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "s.safetensors"


@pytest.fixture
def runs(monkeypatch):
    """The requests of each time that the model runs."""
    seen, original = [], cache.collect

    def collect(model, requests, calibration):
        seen.append([(each.tensor, each.kinds) for each in requests])
        return original(model, requests, calibration)

    monkeypatch.setattr(cache, "collect", collect)
    return seen


def test_a_cache_gives_back_what_was_collected_without_a_run(loaded, data, file, runs):
    first = collected(loaded, ASKED, Calibration(data, cache=file))
    second = collected(loaded, ASKED, Calibration(data, cache=file))
    assert len(runs) == 1
    assert first.answers.keys() == second.answers.keys()
    assert all(np.array_equal(second.answers[key], each) for key, each in first.answers.items())
    assert all(second.answers[key].dtype == np.float64 for key in second.answers)
    assert (second.samples, second.synthetic) == (9, False)
    assert list(file.parent.iterdir()) == [file]


def test_a_cache_learns_what_it_lacks(loaded, data, file, runs):
    collected(loaded, ASKED, Calibration(data, cache=file))
    more = [*ASKED, Request("x", 6, ("channel_sum",)), Request("h", 6, ("channel_max", "max"), Axis(-1))]
    collected(loaded, more, Calibration(data, cache=file))
    assert runs[1:] == [[("h", ("absmax", "max")), ("x", ("channel_sum",))]]
    assert collected(loaded, more, Calibration(data, cache=file)).get("x", "channel_sum").shape == (6,)
    assert len(runs) == 2


def test_the_same_model_in_another_file_has_the_same_statistics(proto, data, file, tmp_path):
    message = proto("g (float[n, 6] x) => (float[n, 400] y) { y = MatMul(x, w) }", w=np.ones((6, 400), np.float32))
    onnx.save(message, tmp_path / "one.onnx")
    onnx.save(message, tmp_path / "two.onnx", save_as_external_data=True, size_threshold=0, location="w.data")
    one, two = load(tmp_path / "one.onnx"), load(tmp_path / "two.onnx")
    assert (one.external, two.external) == (False, True)
    asked = [Request("x", 6, ("hessian",))]
    collected(one, asked, Calibration(data, cache=file))
    assert load_statistics(file, two, asked).rows("x") == 9


@pytest.mark.parametrize("what", ["weight", "graph", "data", "samples"])
def test_a_cache_of_something_else_is_refused(what, model, loaded, data, file):
    collected(loaded, ASKED, Calibration(data, cache=file))
    before = file.read_bytes()
    samples = 128
    if what == "weight":
        weight = loaded.ir.graph.initializers["w"].const_value.numpy().copy()
        weight[5, 3] += 1
        loaded = model(TEXT, w=weight)
    elif what == "graph":
        loaded = model(TEXT.replace("Relu", "Abs"), w=loaded.ir.graph.initializers["w"].const_value.numpy())
    elif what == "data":
        data = data.copy()
        data[8, 5] += 1
    else:
        samples = 8
    differs = "data" if what in ("data", "samples") else "model"
    with pytest.raises(DataError, match=f"its {differs} differs.*at most 128 samples.*name another file, or delete"):
        collected(loaded, ASKED, Calibration(data, cache=file, samples=samples))
    assert file.read_bytes() == before


def test_every_damaged_byte_is_noticed(loaded, data, file):
    save(collected(loaded, ASKED, Calibration(data)), file, loaded, Calibration(data))
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(12), *rng.choice(len(content), 150, replace=False).tolist(), len(content) - 1]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged|another model|no statistics that this version"):
            load_statistics(file, loaded, ASKED)
    file.write_bytes(content)
    assert load_statistics(file, loaded, ASKED).samples == 9


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_of_something_else_is_refused(content, loaded, data, file):
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|no statistics that this version of onnxq reads"):
        collected(loaded, ASKED, Calibration(data, cache=file))
    assert file.read_bytes() == content


def rewritten(file, *, seal=True, **changes):
    """Change a file as somebody would who knows how its content is sealed."""
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    metadata.pop("content")
    metadata.update({name: value for name, value in changes.items() if isinstance(value, str)})
    arrays.update({name.removeprefix("array_"): each for name, each in changes.items() if not isinstance(each, str)})
    if seal:
        ordered = {name: arrays[name] for name in sorted(arrays, key=int)}
        metadata["content"] = cache._content(metadata, ordered)
    save_file(arrays, file, metadata)


def test_what_a_forger_puts_in_is_checked(loaded, data, file):
    calibration = Calibration(data)
    found = collected(loaded, ASKED, calibration)
    number = [key.kind for key in found.answers].index("hessian")
    forgeries = [
        ({f"array_{number}": np.full((6, 6), np.nan)}, NonFiniteError, "hessian of 'h' .* NaN"),
        ({f"array_{number}": np.ones((5, 5))}, DataError, r"shape \[5, 5\], not \[6, 6\]"),
        ({f"array_{number}": np.ones((6, 6), np.float32)}, DataError, "F32, not F64"),
        ({"keys": "[]"}, DataError, "do not match"),
        ({"keys": json.dumps([["h", "min", [], ""]] * len(found.answers))}, DataError, "damaged"),
        ({"keys": "[" * 100_000}, DataError, "damaged"),
        ({"samples": "many"}, DataError, "damaged"),
        ({"form": "onnxq.statistics.0"}, DataError, "no statistics that this version of onnxq reads"),
    ]
    for changes, error, says in forgeries:
        save(found, file, loaded, calibration)
        rewritten(file, **changes)
        with pytest.raises(error, match=says):
            load_statistics(file, loaded, ASKED)
    save(found, file, loaded, calibration)
    rewritten(file)
    assert load_statistics(file, loaded, ASKED).samples == 9


def test_a_file_that_lacks_an_answer_says_so(loaded, data, file):
    calibration = Calibration(data)
    save(collected(loaded, ASKED, calibration), file, loaded, calibration)
    with pytest.raises(DataError, match="lacks statistics of 'x', which the recipe needs: make them with"):
        load_statistics(file, loaded, [Request("x", 6, ("hessian",))])
    with pytest.raises(DataError, match="there is no file of statistics"):
        load_statistics(file.with_name("no"), loaded)


def test_an_iterator_cannot_be_recognized_again(loaded, data, file):
    with pytest.raises(UsageError, match="statistics of an iterator cannot be kept in a cache"):
        collected(loaded, ASKED, Calibration(iter([{"x": data}]), cache=file))
    assert not file.exists()


def test_where_no_file_can_be_written_nothing_runs(loaded, data, tmp_path, runs):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path, says in (
        (tmp_path / "no" / "s", "folder of .* does not exist"),
        (tmp_path, "not a regular file"),
        (tmp_path / "link", "not a regular file"),
    ):
        with pytest.raises(OutputError, match=says):
            collected(loaded, ASKED, Calibration(data, cache=path))
    assert runs == []


def test_a_write_that_fails_leaves_the_old_file(loaded, data, file, monkeypatch):
    calibration = Calibration(data, cache=file)
    collected(loaded, ASKED, calibration)
    before = file.read_bytes()

    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        collected(loaded, [*ASKED, Request("x", 6, ("max",))], calibration)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_versions_and_settings_are_recorded(loaded, data, file):
    collected(loaded, ASKED, Calibration(data, cache=file, samples=None))
    with safe_open(file, "numpy") as opened:
        recorded = opened.metadata()
    assert "onnxruntime" in json.loads(recorded["versions"])
    assert recorded["settings"] == "all samples, windows of 512 tokens, batches of 4"
    assert recorded["samples"] == "9"
