"""Arrays in a file come back as they were, and a file is whole or not there."""

from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import OutputError
from onnxq.model.arrays import read_arrays, write_arrays

ARRAYS = {
    "scalar": np.float64(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "turned": np.arange(12, dtype=np.int8).reshape(3, 4).T,
    "every second": np.arange(8, dtype=np.uint16)[::2],
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("lasting", [True, False])
def test_what_is_written_is_read(lasting: bool, tmp_path: Path) -> None:
    path = tmp_path / "arrays"
    write_arrays(path, {name: np.asarray(each) for name, each in ARRAYS.items()}, {"é": "ö"}, "it", lasting=lasting)
    found, words = read_arrays(path)
    assert words == {"é": "ö"}
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(found[name], array)
    assert [each.name for each in tmp_path.iterdir()] == ["arrays"]


def test_what_cannot_be_written_says_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write the sums: No such file or directory"):
        write_arrays(tmp_path / "nowhere" / "arrays", {"a": np.ones(2)}, {}, "the sums")


def test_a_damaged_file_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "arrays"
    write_arrays(path, {"a": np.ones(8)}, {}, "it")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot read"):
        read_arrays(path)
    with pytest.raises(ValueError, match="cannot read"):
        read_arrays(tmp_path / "none")
