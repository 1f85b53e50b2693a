import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.formats import Integer


@pytest.mark.parametrize("width", range(2, 9))
def test_signed_codes_are_twos_complement(width):
    fmt = Integer(width)
    assert fmt.name == f"int{width}"
    assert (fmt.low, fmt.high) == (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    integers = np.arange(fmt.low, fmt.high + 1)
    assert fmt.encode(integers).tolist() == [int(each) % 2**width for each in integers]


@pytest.mark.parametrize("width", range(2, 9))
def test_unsigned_codes_are_the_integers(width):
    fmt = Integer(width, signed=False)
    assert fmt.name == f"uint{width}"
    assert (fmt.low, fmt.high) == (0, 2**width - 1)
    assert fmt.encode(np.arange(2**width)).tolist() == list(range(2**width))


def test_halves_go_to_the_even_integer_and_the_ends_saturate():
    x = [-9.0, -8.6, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 6.5, 7.5, 3e38]
    assert Integer(4).decode(Integer(4).encode(x)).tolist() == [-8, -8, -2, -2, 0, 0, 2, 2, 6, 7, 7]
    assert Integer(2, signed=False).encode([-1.0, -0.0, 0.5, 2.5, 9.0]).tolist() == [0, 0, 0, 2, 3]


def test_absmax_scaling_uses_the_symmetric_range():
    assert Integer(4).max_value == 7
    assert Integer(4, signed=False).max_value == 15


@pytest.mark.parametrize("width", range(2, 9))
def test_onnx_has_integers_of_two_four_and_eight_bits(width):
    assert (Integer(width).onnx_type is not None) == (width in (2, 4, 8))


@pytest.mark.parametrize("width", [1, 9, 0, -4])
def test_other_widths_are_refused(width):
    with pytest.raises(UsageError, match=f"{width} bits"):
        Integer(width)
