"""The same samples give the same statistics in whatever form they come; what does not fit is named."""

import io
import zipfile

import numpy as np
import pytest

from onnxq.errors import DataError, UsageError
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.data import read
from onnxq.statistics.folder import read_folder
from onnxq.statistics.requests import Request

TWO = "g (float[n, 6] x, float[n, 6] y) => (float[n, 6] h) { h = Add(x, y) }"
ONE = "g (float[n, 6] x) => (float[n, 6] h) { h = Neg(x) }"
TOKENS = "g (int64[n, s] input_ids, int64[n, s] attention_mask) => (float[n, s, 6] h) { h = Gather(w, input_ids) }"


def hessian(model, data, **settings):
    found = collect(model, [Request("h", 6, ("hessian",))], Calibration(data, **settings))
    return found.get("h", "hessian"), found.samples


@pytest.fixture
def arrays(integers):
    return {"x": integers(10, 6), "y": integers(10, 6)}


@pytest.fixture
def expected(arrays):
    rows = (arrays["x"] + arrays["y"]).astype(np.float64)
    return rows.T @ rows


def folder_of(path, arrays, *cuts):
    path.mkdir(exist_ok=True)
    for number, (start, end) in enumerate(zip((0, *cuts), (*cuts, 10), strict=True)):
        np.savez(path / f"part-{number}.npz", **{name: each[start:end] for name, each in arrays.items()})
    return path


def test_arrays_in_every_form(model, arrays, expected, tmp_path):
    np.savez(tmp_path / "all.npz", **arrays)
    feeds = [{name: each[at : at + 3] for name, each in arrays.items()} for at in range(0, 10, 3)]
    forms = [arrays, tmp_path / "all.npz", str(tmp_path / "all.npz"), folder_of(tmp_path / "f", arrays, 1, 7), feeds]
    for data in (*forms, iter(feeds), (each for each in feeds)):
        h, samples = hessian(model(TWO), data)
        assert np.array_equal(h, expected)
        assert samples == 10


def test_one_array_for_one_input(model, integers, tmp_path):
    x = integers(10, 6)
    np.save(tmp_path / "x.npy", x)
    for data in (x, tmp_path / "x.npy", {"x": x}):
        assert np.array_equal(hessian(model(ONE), data)[0], x.astype(np.float64).T @ x)


def test_tokens_become_windows(model, integers, tmp_path):
    table, tokens = integers(50, 6), np.arange(40, dtype=np.uint16)
    np.save(tmp_path / "t.npy", tokens)
    h, samples = hessian(model(TOKENS, w=table), tmp_path / "t.npy", sequence=7, samples=4)
    rows = table[:28].astype(np.float64)
    assert np.array_equal(h, rows.T @ rows)
    assert samples == 4


@pytest.mark.parametrize("limit", [1, 4, 9, None, 99])
def test_a_limit_takes_the_first_samples_of_a_folder(limit, model, arrays, tmp_path):
    h, samples = hessian(model(TWO), folder_of(tmp_path / "f", arrays, 3, 4), samples=limit, batch=2)
    rows = (arrays["x"] + arrays["y"])[:limit].astype(np.float64)
    assert np.array_equal(h, rows.T @ rows)
    assert samples == min(limit or 10, 10)


def test_feeds_end_with_the_one_that_reaches_the_limit(model, arrays):
    feeds = [{name: each[at : at + 3] for name, each in arrays.items()} for at in range(0, 10, 3)]
    assert hessian(model(TWO), feeds, samples=4)[1] == 6


def test_a_folder_reads_one_file_at_a_time(arrays, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("onnxq.statistics.folder.read", lambda path: (opened.append(path.name), read(path))[1])
    found = read_folder(folder_of(tmp_path / "f", arrays, 2, 5))
    assert opened == []
    assert found["x"].shape == (10, 6)
    assert np.array_equal(found["x"][np.array([1, 2, 4])], arrays["x"][[1, 2, 4]])
    assert np.array_equal(found["y"][np.array([3, 9])], arrays["y"][[3, 9]])
    assert opened == ["part-0.npz", "part-1.npz", "part-2.npz"]


def test_files_of_a_folder_must_be_alike(arrays, tmp_path):
    folder = folder_of(tmp_path / "f", arrays, 5)
    np.savez(folder / "part-2.npz", x=arrays["x"], z=arrays["y"])
    with pytest.raises(DataError, match=r"'part-0.npz' has x, y, 'part-2.npz' has x, z"):
        read_folder(folder)
    np.savez(folder / "part-2.npz", x=arrays["x"], y=arrays["y"][:, :5])
    with pytest.raises(DataError, match=r"array 'y' is float32\[10, 5\] in 'part-2.npz' and float32\[5, 6\] in"):
        read_folder(folder)
    np.savez(folder / "part-2.npz", x=arrays["x"], y=arrays["y"][:3])
    with pytest.raises(DataError, match=r"'part-2.npz': .* x has 10, y has 3"):
        read_folder(folder)
    (folder / "part-2.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"part-2.npz' is not an .npz file"):
        read_folder(folder)


def test_a_file_that_claims_more_than_it_has_is_refused(tmp_path):
    (tmp_path / "f").mkdir()
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 6), np.float32))
    with zipfile.ZipFile(tmp_path / "f" / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue().replace(b"(3, 6), }      ", b"(3, 6000000), }"))
    with pytest.raises(DataError, match=r"claims .* bytes it does not have"):
        read_folder(tmp_path / "f")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"x": np.ones((3, 6), np.float32)}, r"no array for input 'y' float32\[n, 6\]; it has x"),
        (
            {"x": np.ones((3, 6)), "y": np.ones((3, 5))},
            r"input 'y' float32\[n, 6\] does not fit data of shape \[3, 5\]",
        ),
        ({"x": np.ones((3, 6)), "y": np.ones((2, 6))}, "x has 3, y has 2"),
        ({"x": np.ones((3, 6)), "y": np.ones((3, 6), complex)}, "cannot be fed with complex128 data"),
        ({"x": np.ones((3, 6)), "y": np.full((3, 6), np.nan)}, "data for input 'y' has 18 NaN or Inf values"),
        ({"x": np.ones((0, 6)), "y": np.ones((0, 6))}, "x has 0, y has 0"),
        ({"x": np.ones((3, 6)), "yy": np.ones((3, 6))}, "no input 'yy': did you mean 'y'"),
        (np.ones((3, 6)), "one array does not feed 2 inputs"),
        ([{"x": np.ones((3, 6))}], r"feed 0 has no array for input 'y' float32\[n, 6\]; it has x"),
        ([{"x": np.ones((3, 6)), "y": np.ones((3, 6, 1))}], r"feed 0: input 'y' .* shape \[3, 6, 1\]"),
        ([{"x": np.ones((3, 6)), "z": np.ones((3, 6))}], "feed 0: the model has no input 'z'"),
        ([np.ones((3, 6))], "feed 0 is a ndarray, not a mapping"),
        ([], "the calibration data is empty"),
        ("nowhere.npz", "'nowhere.npz' does not exist"),
    ],
)
def test_data_that_does_not_fit_is_named(data, says, model):
    with pytest.raises(DataError, match=says):
        hessian(model(TWO), data)


def test_too_few_tokens(model, integers):
    with pytest.raises(
        DataError, match=r"100 tokens, fewer than one sequence of 512: give more, or shorter .* \(--seq\)"
    ):
        hessian(model(TOKENS, w=integers(100, 6)), np.arange(100))


def test_a_folder_without_files(model, tmp_path):
    with pytest.raises(DataError, match=r"has no .npz files"):
        hessian(model(ONE), tmp_path)


def test_an_iterator_has_one_pass(model, integers):
    feeds = iter([{"x": integers(2, 6)}])
    with pytest.raises(DataError, match="only once, and these statistics take 2 passes: give a list"):
        collect(model(ONE), [Request("h", 6, ("histogram",))], Calibration(feeds))


def test_no_samples(model, integers):
    with pytest.raises(UsageError, match="samples is 0"):
        hessian(model(ONE), integers(3, 6), samples=0)


def test_an_input_that_numpy_cannot_hold(model):
    with pytest.raises(DataError, match=r"input 'x' is a .*BFLOAT16.* which cannot be fed"):
        hessian(model("g (bfloat16[n, 6] x) => (bfloat16[n, 6] h) { h = Identity(x) }"), np.ones((3, 6)))
