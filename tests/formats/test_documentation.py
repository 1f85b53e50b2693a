"""docs/formats.md says what the code does."""

from pathlib import Path

import numpy as np
import pytest

from onnxq.formats import NAMED_FORMATS, SCALE_TYPES

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def table(*first_columns):
    """The rows of the table whose header starts so, by name, each a list of cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| " + " | ".join(first_columns) + " |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert name not in rows
        rows[name.strip("`")] = cells
    return rows


def number(cell):
    base, _, exponent = cell.partition("^")
    return float(base) ** int(exponent) if exponent else float(cell)


def finite_values(fmt):
    return np.unique(fmt.values[np.isfinite(fmt.values)])


def sqnr(fmt, rows):
    """dB, mean over rows that each have one scale; formats without negative values get a zero point."""
    if finite_values(fmt)[0] < 0:
        scale, zero = np.abs(rows).max(1, keepdims=True) / np.float32(fmt.max_value), np.float32(0)
    else:
        low, high = rows.min(1, keepdims=True).clip(max=0), rows.max(1, keepdims=True).clip(min=0)
        scale = (high - low) / np.float32(fmt.max_value)
        zero = np.rint(-low / scale)
    error = (fmt.decode(fmt.encode(rows / scale + zero)) - zero) * scale - rows
    return float(np.mean(10 * np.log10(np.square(rows).sum(1) / np.square(error).sum(1))))


def test_every_format_is_in_the_table_with_its_numbers():
    rows = table("name", "bits", "largest")
    assert rows.keys() == NAMED_FORMATS.keys()
    for name, (bits, largest, smallest, count, onnx_type, purpose) in rows.items():
        fmt = NAMED_FORMATS[name]
        values = finite_values(fmt)
        assert int(bits) == fmt.bits, name
        assert number(largest) == fmt.max_value, name
        assert number(smallest) == pytest.approx(values[values > 0][0], rel=1e-6), name
        assert int(count) == values.size, name
        assert onnx_type == (fmt.onnx_type or "none"), name
        assert purpose, name


def test_every_format_fits_as_well_as_the_table_says():
    rows = table("name", "normal, row")
    assert rows.keys() == NAMED_FORMATS.keys()
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 4096)).astype(np.float32)
    heavy = random.standard_t(3, (64, 4096)).astype(np.float32)
    data = [normal, heavy, normal.reshape(-1, 32), heavy.reshape(-1, 32)]
    for name, cells in rows.items():
        measured = [sqnr(NAMED_FORMATS[name], each) for each in data]
        assert [float(cell) for cell in cells] == pytest.approx(measured, abs=0.06), name


def test_every_scale_type_is_in_the_table_with_its_range():
    rows = table("name", "bits", "ONNX type")
    assert rows.keys() == SCALE_TYPES.keys()
    for name, (bits, onnx_type, smallest, largest, rounded, purpose) in rows.items():
        scale = SCALE_TYPES[name]
        stored = scale.store(np.array([1e-45, 3e38, 1.9375], np.float32)).astype(np.float64)
        assert int(bits) == 8 * scale.dtype.itemsize, name
        assert onnx_type == scale.onnx_type, name
        assert [number(smallest), number(largest)] == stored[:2].tolist(), name
        assert rounded == ("down" if stored[2] == 1 else "to nearest"), name
        assert purpose, name
