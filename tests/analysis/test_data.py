import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from onnxq.errors import DataError
from onnxq.runtime.inputs import Input
from onnxq.statistics.data import cast, read


def wanted(dtype):
    return Input("x", np.dtype(dtype), ("n",))


def test_a_npy_file_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5))
    array = read(tmp_path / "a.npy")
    assert isinstance(array, np.memmap)
    assert array.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_a_dict_of_arrays(save, tmp_path):
    save(tmp_path / "a.npz", x=np.ones((2, 3), np.float32), labels=np.array([1, 2]))
    arrays = read(tmp_path / "a.npz")
    assert list(arrays) == ["x", "labels"]
    assert arrays["x"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_arrays_and_mappings_pass_through():
    assert read(np.arange(3)).tolist() == [0, 1, 2]
    assert read({"x": [1, 2]})["x"].tolist() == [1, 2]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.npy' does not exist"):
        read(tmp_path / "none.npy")


class Mine:
    """Whatever unpickling would run, it shows that something was unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def npy(header, body=b""):
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def archive(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.npy", content)
    return stream.getvalue()


HUGE = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", bytes(16))
OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([Mine()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pickle.dumps(Mine()), id="pickle"),
        pytest.param(OBJECTS.getvalue(), id="objects"),
        pytest.param(archive(OBJECTS.getvalue()), id="objects in an archive"),
        pytest.param(HUGE, id="more claimed than there is"),
        pytest.param(archive(HUGE), id="more claimed than there is, in an archive"),
        pytest.param(archive(b"text"), id="no array in an archive"),
        pytest.param(archive(b"\x93NUMPY\x09\x00"), id="unknown version"),
        pytest.param(archive(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")), id="negative shape"),
        pytest.param(archive(npy("{'descr': '<f4'")), id="broken header"),
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 not an archive", id="broken archive"),
    ],
)
def test_a_bad_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz'"):
        read(tmp_path / "bad.npz")


def test_an_archive_that_unpacks_beyond_the_limit_is_refused_unread(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"unpacks to 8,000,\d+ bytes, over the limit of 1,000,000"):
        read(tmp_path / "bomb.npz", limit_bytes=1_000_000)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.uint16([0, 65535]), np.int64),
        (np.int64([-5, 7]), np.int32),
        (np.uint8([0, 255]), np.float32),
        (np.bool_([True, False]), np.int64),
        (np.int64([0, 2**24]), np.float32),
        (np.float64([0.1, -1e30]), np.float32),
        (np.float32([0.1, 60000]), np.float16),
        (np.float32([-np.inf, 0]), np.float16),
    ],
)
def test_casts_that_keep_the_meaning_are_made(given, dtype):
    made = cast(given, wanted(dtype))
    assert made.dtype == dtype
    np.testing.assert_allclose(made.astype(np.float64), given.astype(np.float64), rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "dtype", "says"),
    [
        (np.int64([1, 2**31]), np.int32, r"cannot hold 2147483648, the data at \[1\]"),
        (np.int64([0, -1]), np.uint8, r"cannot hold -1"),
        (np.int64([-1]), np.uint64, r"cannot hold -1"),
        (np.uint64([2**64 - 1]), np.int64, r"cannot hold 18446744073709551615"),
        (np.int64([2**24 + 1]), np.float32, r"cannot hold 16777217"),
        (np.float32([0, 1e6]), np.float16, r"cannot hold 1000000"),
        (np.float32([1.5]), np.int64, r"'x' int64\[n\] cannot be fed with float32 data"),
        (np.int64([1]), np.bool_, r"cannot be fed with int64 data"),
        (np.array(["a"]), np.float32, r"cannot be fed with <U1 data"),
        (np.float32([0, np.nan, np.inf]), np.float32, r"'x' has 2 NaN or Inf values \(first at \[1\]\)"),
    ],
)
def test_casts_that_lose_something_are_refused(given, dtype, says):
    with pytest.raises(DataError, match=says):
        cast(given, wanted(dtype))
