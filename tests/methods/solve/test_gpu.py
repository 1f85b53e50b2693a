"""What a GPU finds is what numpy finds: codes of a block to the bit, solutions in their error."""

import numpy as np
import pytest

from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import extremes, lay
from onnxq.methods.solve import SOLVERS
from onnxq.methods.solve.in_turn import BLOCK, Rows, round_block

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    module = pytest.importorskip("cupy")
    if not module.is_available():
        pytest.skip("CUDA finds no GPU")
    return module


@pytest.mark.parametrize("name", ["fp6_e2m3", "fp6_e3m2", "fp4_e3m0", "int3", "uint4", "int8", "nf4"])
@pytest.mark.parametrize("block", [16, None])
def test_codes_of_a_block_are_those_of_numpy(name, block, cupy, spec):
    rng, chosen = np.random.default_rng(0), spec(name, block=block)
    weight = rng.standard_normal((1, BLOCK, 50)).astype(np.float32)
    grid = lay(chosen.formats[0], *extremes(weight, block), chosen)
    groups = [row // (block or BLOCK) for row in range(BLOCK)]
    target, pull = weight[0, 14:], 0.1 * rng.standard_normal((50, 50), np.float32)
    arrays = target, pull, np.triu(0.3 * rng.standard_normal((50, 50), np.float32), 1)
    found = round_block(*map(cupy.asarray, arrays), Rows(grid.on(cupy), groups), 14, cupy)
    for mine, exact in zip(found, round_block(*arrays, Rows(grid, groups), 14, np), strict=True):
        assert np.array_equal(mine.get(), exact)


@pytest.mark.parametrize("method", ["gptq", "erq", "clip", "search", "kmeans", "pb-llm"])
@pytest.mark.parametrize("name", ["fp6_e3m2", "uint4", "nf4", "codebook3"])
def test_solutions_are_as_good(method, name, cupy, layer, spec, cost):
    weight, h = layer(3, 150, 70)
    chosen = spec("binary" if method == "pb-llm" else name, block=32)
    mine, exact = (cost(weight, SOLVERS[method].solve(weight, chosen, Curvature(h), xp), h) for xp in (cupy, np))
    assert mine == pytest.approx(exact, rel=0.01)
