"""Native dequantization gives the float32 numbers of the function, bit for bit."""

import numpy as np
import pytest

from onnxq.formats import NAMED_FORMATS, Integer

CASES = [
    ((70, 131), 0, 32),
    ((70, 131), 1, 16),
    ((5, 33, 7), 1, 8),
    ((5, 33, 7), 0, 2),
    ((3, 4, 130), 2, 64),
    ((3, 2500), 0, 1),
    ((1, 5000), 1, 4999),
    ((9,), 0, 4),
    ((0, 9), 0, 4),
]


@pytest.mark.parametrize("name", NAMED_FORMATS)
def test_every_format(name, isa, weight, open_session):
    for at, (shape, axis, block) in enumerate(CASES):
        asymmetric = at % 2 == 0 and isinstance(NAMED_FORMATS[name], Integer)
        made = weight(name, shape, block, axis=axis, one=at % 3 == 2, asymmetric=asymmetric)
        (y,) = open_session(made.model("Dequantize"), dequantize=True).run(None, {})
        np.testing.assert_array_equal(y, made.values.astype(np.float32))


@pytest.mark.parametrize("scale", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_of_results_and_scales(dtype, scale, isa, weight, open_session):
    for shape, axis, block in CASES:
        made = weight("fp6_e3m2", shape, block, axis=axis, scale=scale)
        opened = open_session(made.model("Dequantize", dtype), dequantize=True)
        assert opened.get_outputs()[0].shape == list(shape)
        (y,) = opened.run(None, {})
        np.testing.assert_array_equal(y, made.values.astype(np.float32).astype(dtype))


def test_it_is_left_to_the_function_unless_asked_for(weight, open_session):
    made = weight("fp6_e3m2", (40, 30), 32)
    with pytest.raises(Exception, match=r"DequantizeFP6E3M2.*is not a registered function/op"):
        open_session(made.model("Dequantize"))
    (y,) = open_session(made.model("Dequantize", functions_too=True)).run(None, {})
    np.testing.assert_array_equal(y, made.values.astype(np.float32))
