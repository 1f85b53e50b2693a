"""Tables learned by k-means: the best there are, never worse than those they began with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.formats import LEARNED_FORMATS, Codebook
from onnxq.methods.curvature import Curvature
from onnxq.methods.solve import SOLVERS, clip, kmeans, rtn


def cost_of(x: np.ndarray, costs: np.ndarray, levels: np.ndarray) -> float:
    return float((costs * np.square(x[:, None] - levels).min(axis=1)).sum())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 9)), min_size=1, max_size=60), st.sampled_from([4, 8, 16])
)
def test_every_level_is_the_mean_of_what_is_nearest_to_it(pairs, count):
    x, costs = (np.array(each, np.float64) for each in zip(*pairs, strict=True))
    levels = kmeans.lloyd(x, costs, count)
    assert levels.shape == (count,)
    assert (np.diff(levels) >= 0).all()
    if not (costs.sum() and x.any()):
        return
    middle = (levels[1:] + levels[:-1]) / 2
    nearest = np.searchsorted(middle, x, side="left")
    for at in range(count):
        mine = costs * (nearest == at)
        if mine.sum():
            assert levels[at] == pytest.approx((mine * x).sum() / mine.sum(), abs=0.01)


def test_normal_numbers_have_the_levels_of_max():
    # Max, "Quantizing for minimum distortion", 1960, table I: four and eight levels of the normal distribution.
    x = np.random.default_rng(0).standard_normal(400_000)
    four, eight = (kmeans.lloyd(x, np.ones_like(x), count) for count in (4, 8))
    np.testing.assert_allclose(four, [-1.510, -0.4528, 0.4528, 1.510], atol=0.02)
    np.testing.assert_allclose(eight[4:], [0.2451, 0.7560, 1.344, 2.152], atol=0.03)


def test_a_number_counts_as_its_error_costs():
    x = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    levels = kmeans.lloyd(x, np.array([1.0, 3.0, 1.0, 1.0, 1.0]), 2)
    np.testing.assert_allclose(levels, [0.75, 11.0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8))
def test_a_table_has_different_levels_and_fits_in_one(levels):
    kind = LEARNED_FORMATS["codebook3"].with_levels(sorted(levels))
    assert isinstance(kind, Codebook)
    assert (np.diff(kind.values) > 0).all()
    assert not any(levels) or 1 <= kind.max_value < 1 + 1e-4
    assert kind.encode(kind.values).tolist() == list(range(8))


def two_peaks(seed: int, k: int = 96, c: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 0.3], (1, k, c)) + 0.05 * rng.standard_normal((1, k, c))).astype(np.float32)


@pytest.mark.parametrize("name", LEARNED_FORMATS)
@pytest.mark.parametrize("block", [None, 32, 96])
def test_a_learned_table_fits_weights_that_are_not_normal(name, block, spec):
    weight, chosen = two_peaks(0), spec(name, block=block)
    learned, begun = kmeans.solve(weight, chosen), clip.solve(weight, chosen)
    assert learned.format.name == name
    assert learned.format != begun.format
    assert learned.squared_error < 0.6 * begun.squared_error
    assert kmeans.solve(weight, chosen).format == learned.format


@pytest.mark.parametrize("method", ["kmeans", "gptq"])
@pytest.mark.parametrize("seed", range(3))
def test_with_statistics_the_layer_is_better_than_rounded(method, seed, layer, spec, cost):
    weight, h = layer(seed, 64, 8)
    chosen = spec("codebook3")
    found = SOLVERS[method].solve(weight, chosen, Curvature(h), np)
    assert cost(weight, found, h) < 0.9 * cost(weight, rtn.solve(weight, chosen), h)


@pytest.mark.parametrize("weight", [np.zeros((1, 8, 3)), np.ones((1, 8, 3)), np.ones((2, 1, 1))], ids=str)
def test_few_different_weights_are_exact(weight, spec):
    found = kmeans.solve(weight.astype(np.float32), spec("codebook2", block=4))
    assert np.abs(found.decode() - weight).max() <= 1e-5


@pytest.mark.parametrize("scale", ["fp32", "fp16", "e8m0", "e4m3"])
@pytest.mark.parametrize("method", ["rtn", "clip", "search", "kmeans"])
def test_a_group_of_zeros_stays_next_to_zero(method, scale, layer, spec):
    weight, h = layer(0, 32, 4)
    weight[:, 16:, 1] = 0
    found = SOLVERS[method].solve(weight, spec("codebook3", scale=scale), Curvature(h), np).decode()
    assert np.abs(found[:, 16:, 1]).max() < (0.02 if scale == "e4m3" else 1e-4)


def test_fixed_formats_keep_their_values(spec):
    chosen = spec("nf4", "codebook4")
    kinds = kmeans.with_tables(two_peaks(1), chosen).formats
    assert [each.name for each in kinds] == ["nf4", "codebook4"]
    assert kinds[0] is chosen.formats[0]
    assert kinds[1] != chosen.formats[1]
