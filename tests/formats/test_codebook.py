from statistics import NormalDist

import numpy as np
import pytest

from onnxq.formats import LEARNED_FORMATS, get_format


def test_nf4_levels_are_the_normalised_quantiles_of_qlora():
    # QLoRA, arXiv 2305.14314, appendix E: evenly spaced probabilities up to `offset`, eight steps above zero and seven
    # below, so that zero is a level; the published numbers were computed in float32.
    offset = 0.9677083
    above = [NormalDist().inv_cdf(p) for p in np.linspace(0.5, offset, 9)]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 8)]
    levels = np.array(below[:-1] + above) / max(above)
    np.testing.assert_allclose(get_format("nf4").values, levels, atol=1e-6)


def test_nf4_codes_are_positions_in_ascending_order():
    nf4 = get_format("nf4")
    assert nf4.bits == 4
    assert (np.diff(nf4.values) > 0).all()
    assert nf4.encode([-5.0, -1.0, 0.0, -0.0, 1e-9, 1.0, 7.0]).tolist() == [0, 0, 7, 7, 7, 15, 15]


def test_a_tie_of_nf4_goes_to_the_even_code():
    nf4 = get_format("nf4")
    middle = (nf4.values[:-1].astype(np.float64) + nf4.values[1:]) / 2
    exact_in_float32 = np.flatnonzero(middle == middle.astype(np.float32))
    assert exact_in_float32.size >= 2
    for below in exact_in_float32:
        tie = np.float32(middle[below])
        assert nf4.encode(tie) == (below if below % 2 == 0 else below + 1)
        assert nf4.encode(np.nextafter(tie, np.float32(-2))) == below
        assert nf4.encode(np.nextafter(tie, np.float32(2))) == below + 1


def test_onnx_has_no_codebook_type():
    assert get_format("nf4").onnx_type is None


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_table_begins_with_quantiles_of_the_normal_distribution(bits):
    kind = get_format(f"codebook{bits}")
    assert kind is LEARNED_FORMATS[kind.name]
    assert (kind.bits, kind.values.size, kind.max_value, kind.onnx_type) == (bits, 2**bits, 1.0, None)
    share = [NormalDist().cdf(float(each) * NormalDist().inv_cdf(1 - 0.5 / 2**bits)) for each in kind.values]
    np.testing.assert_allclose(share, (np.arange(2**bits) + 0.5) / 2**bits, atol=1e-6)


def test_a_table_that_reaches_farther_on_one_side_is_scaled_by_that():
    kind = LEARNED_FORMATS["codebook2"].with_levels([-0.5, 0, 1, 4])
    assert kind.values.tolist() == [-0.125, 0, 0.25, 1]
    assert kind.max_value == 1
    assert (kind.name, kind.bits, kind.learned) == ("codebook2", 2, True)
