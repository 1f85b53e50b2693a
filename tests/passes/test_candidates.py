"""Each weight as each of several plans says."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnxq.model.load import from_proto
from onnxq.passes.candidates import solve_each
from onnxq.passes.plan import make_plan
from onnxq.recipes import parse_recipe

MODEL = '<ir_version: 10, opset_import: ["": 21]> g (float[3,64] x) => (float[3,64] y) { y = MatMul(x, w) }'


def test_nan_is_dealt_with_as_the_recipe_of_each_plan_says():
    proto = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight[2, 3] = np.nan
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = from_proto(proto)
    rules = "rules: [{weight: {format: int8}}]"
    recipes = [parse_recipe(f"non_finite: {policy}\n{rules}") for policy in ("skip", "clamp")]
    made = [make_plan(model.ir, recipe, "ort") for recipe in recipes]
    found = solve_each(
        model, [plan for plan, _ in made], made[0][1], None, policies=[recipe.non_finite for recipe in recipes]
    )
    skipped, clamped = (solution for _, _, solution in found)
    assert isinstance(skipped, str)
    assert "NaN" in skipped
    assert not isinstance(clamped, str)
    assert np.isfinite(clamped.weight()).all()
