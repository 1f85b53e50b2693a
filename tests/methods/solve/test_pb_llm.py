"""Binary weights with a few in INT8: the numbers of the paper, and what the statistics add."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.formats import get_format, get_scale_type
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solution import Salient
from onnxq.methods.solve import pb_llm


def spec_of(block: int | None = 16, share: float = 0.1, scale: str = "fp32") -> GridSpec:
    return GridSpec([get_format("binary")], block, get_scale_type(scale), salient=share)


def test_the_largest_are_integers_and_the_others_lie_around_their_own_mean():
    weight = np.array([1, 2, 3, 12.7, 0.5, 1.5, -25.4, 1], np.float32).reshape(1, 8, 1)
    found = pb_llm.solve(weight, spec_of(8, 0.25))
    assert found.salient is not None
    assert np.flatnonzero(found.salient.mask).tolist() == [3, 6]
    assert found.salient.codes.tolist() == [64, -127]
    rest = weight[~found.salient.mask]
    middle = rest.mean()
    away = np.abs(rest - middle).mean()
    expected = np.where(rest >= middle, middle + away, middle - away)
    np.testing.assert_allclose(found.decode()[~found.salient.mask], expected, rtol=1e-6)
    np.testing.assert_allclose(found.decode()[found.salient.mask], [12.8, -25.4], rtol=1e-6)
    assert found.squared_error == pytest.approx(float(np.square(found.decode() - weight).sum()), rel=1e-5)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(1, 9)),
    st.none() | st.integers(2, 50),
    st.floats(0.01, 0.5),
    st.integers(0, 99),
)
def test_every_shape_has_as_many_integers_as_asked_for(shape, block, share, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    found = pb_llm.solve(weight, spec_of(block, share))
    assert found.salient is not None
    count = pb_llm.salient_count(weight.size, share)
    assert found.salient.codes.size == found.salient.mask.sum() == count
    assert np.abs(weight[found.salient.mask]).min() >= np.abs(weight[~found.salient.mask]).max(initial=0)
    assert found.codes.max() <= 1
    assert not found.codes[found.salient.mask].any()
    assert found.decode().shape == weight.shape


def test_masked_means_leave_less_error_than_means_with_zeros_for_salient_ones():
    weight = np.random.default_rng(0).standard_t(3, (1, 128, 32)).astype(np.float32)
    found = pb_llm.solve(weight, spec_of(128))
    assert found.salient is not None
    shrunk = np.where(found.salient.mask, 0, weight)
    middle = shrunk.mean(axis=1, keepdims=True)
    away = np.abs(shrunk - middle).mean(axis=1, keepdims=True)
    published = replace(found, scale=away, salient=replace(found.salient, mean=middle))
    errors = [np.square(each.decode() - weight).sum(axis=(0, 1)) for each in (found, published)]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert errors[0].sum() < 0.99 * errors[1].sum()


@pytest.mark.parametrize("seed", range(3))
def test_statistics_make_the_layer_better(seed, layer, cost):
    weight, h = layer(seed, 64, 8)
    blind, seeing = (pb_llm.solve(weight, spec_of(), each) for each in (None, Curvature(h)))
    assert cost(weight, seeing, h) < 0.8 * cost(weight, blind, h)


def test_more_integers_are_less_error(layer, cost):
    weight, h = layer(0, 64, 8)
    costs = [cost(weight, pb_llm.solve(weight, spec_of(share=each), Curvature(h)), h) for each in (0.02, 0.1, 0.3, 0.5)]
    assert costs == sorted(costs, reverse=True)


def test_a_silent_input_and_a_column_of_zeros_do_no_harm(layer):
    weight, h = layer(1, 32, 4)
    h[3] = h[:, 3] = 0
    weight[:, :, 2] = 0
    found = pb_llm.solve(weight, spec_of(), Curvature(h)).decode()
    assert np.isfinite(found).all()
    assert np.abs(found[:, :, 2]).max() < 1e-6


def test_turned_is_the_same_seen_otherwise():
    weight = np.random.default_rng(0).standard_normal((5, 12, 1)).astype(np.float32)
    found = pb_llm.solve(weight, spec_of(4, 0.2))
    assert isinstance(found.salient, Salient)
    turned = found.salient.turned()
    np.testing.assert_array_equal(turned.values(), found.salient.values().transpose(2, 1, 0))
    assert turned.mean.shape == (1, 3, 5)
