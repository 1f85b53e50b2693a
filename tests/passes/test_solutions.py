import numpy as np
import pytest

from onnxq.formats import SCALE_TYPES, get_format
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import rtn
from onnxq.passes.solutions import Solutions


@pytest.mark.parametrize("scale", SCALE_TYPES)
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_a_kept_solution_means_the_same_weights(scale, size, tmp_path):
    weight = (np.random.default_rng(0).normal(size=(1, 64, 4)) * size).astype(np.float32)
    made = rtn.solve(weight, GridSpec([get_format("fp4_e2m1")], 32, SCALE_TYPES[scale]))
    kept = Solutions(tmp_path / "run", {"model": "a"})
    kept.put(0, made)
    assert (kept.get(0).decode() == made.decode()).all()
    assert kept.get(0).sqnr_db == made.sqnr_db
