"""Sensitivity, allocation, noise and spikes on a small language model whose layers differ by design."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxq
from onnxq.analysis.allocation import allocate
from onnxq.analysis.perturbation import perturb
from onnxq.analysis.sensitivity import sensitivity
from onnxq.analysis.spikes import skip_rules, spikes
from onnxq.errors import UsageError
from onnxq.model.load import load
from onnxq.recipes import parse_recipe
from onnxq.recipes.write import write_recipe
from onnxq.statistics.calibration import Calibration

DIGITS = Path(__file__).parents[2] / "samples" / "digits"
VOCABULARY, WIDTH = 32, 64
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCABULARY, 200)
# How much of each of three layers reaches the residual stream.
LOUD = (2.0, 0.02, 0.3)
TEXT = """g (int64[B,S] input_ids) => (float[B,S,V] logits) {
    e = Gather(table, input_ids)
    m0 = MatMul(e, w0)
    a0 = Tanh(m0)
    h0 = Add(e, a0)
    m1 = MatMul(h0, w1)
    a1 = Tanh(m1)
    h1 = Add(h0, a1)
    m2 = MatMul(h1, w2)
    a2 = Tanh(m2)
    h2 = Add(h1, a2)
    logits = MatMul(h2, out)
}"""


@pytest.fixture
def lm(model_file):
    weights = {
        f"w{at}": (RNG.normal(size=(WIDTH, WIDTH)) * loud / WIDTH**0.5).astype(np.float32)
        for at, loud in enumerate(LOUD)
    }
    table = RNG.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    return model_file(TEXT, table=table, out=RNG.normal(size=(WIDTH, VOCABULARY)).astype(np.float32), **weights)


def test_each_effect_is_that_of_the_layer_alone(lm, tmp_path):
    found = sensitivity(lm, TOKENS, ["int4", "int2-g32"], sequence=20, method="rtn")
    names = [each for each in ("w0", "w1", "w2") for _ in range(2)]
    assert [(each.weight, each.recipe) for each in found.effects] == list(
        zip(names, ["int4", "int2-g32"] * 3, strict=True)
    )
    before = onnxq.evaluate(lm, tokens=TOKENS, sequence=20)
    assert found.loss == pytest.approx(before.nll / before.tokens, rel=1e-5)
    for each in found.effects[:3]:
        onnxq.quantize(
            lm,
            each.recipe if each.recipe == "int4" else _rtn(each),
            output=tmp_path / "q.onnx",
            include=each.weight,
            force=True,
        )
        after = onnxq.evaluate(tmp_path / "q.onnx", tokens=TOKENS, sequence=20, accuracy_level=1)
        assert each.loss_change == pytest.approx((after.nll - before.nll) / after.tokens, rel=1e-2, abs=1e-5)
    assert found.runs == 6
    assert found.skipped.keys() == {"table", "out"}


def test_what_stands_beside_a_weight_counts(lm, tmp_path):
    recipe = tmp_path / "beside.yaml"
    recipe.write_text("rules:\n- weight: {format: int3, outliers: 0.05, low_rank: 4}\n", "utf-8")
    first = sensitivity(lm, TOKENS, [str(recipe)], sequence=20).effects[0]
    onnxq.quantize(lm, recipe, output=tmp_path / "q.onnx", include=first.weight)
    before = onnxq.evaluate(lm, tokens=TOKENS, sequence=20)
    after = onnxq.evaluate(tmp_path / "q.onnx", tokens=TOKENS, sequence=20)
    assert first.loss_change == pytest.approx((after.nll - before.nll) / after.tokens, rel=1e-3, abs=1e-6)


def _rtn(effect):
    from onnxq.recipes.rungs import rung

    return rung(effect.recipe)


def test_loud_layers_and_few_bits_come_first(lm):
    found = sensitivity(lm, TOKENS, ["int2-g32", "int8"], sequence=20)
    assert [each.weight for each in found.worst() if each.recipe == "int2-g32"] == ["w0", "w2", "w1"]
    assert {each.recipe for each in found.worst(3)} == {"int2-g32"}
    json.dumps(found.to_dict())


def test_a_loaded_model_is_the_same_afterwards(lm):
    model = load(lm)
    before = [weight.const_value.numpy().copy() for weight in model.ir.graph.initializers.values()]
    sensitivity(model, TOKENS, "int2-g32", sequence=20)
    after = [weight.const_value.numpy() for weight in model.ir.graph.initializers.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_weights_that_cannot_be_swapped_are_loaded_anew(lm):
    """The middle layer in a branch: the same effects, as the branch is always taken."""
    proto = onnx.load(lm)
    (node,) = [node for node in proto.graph.node if node.output[0] == "m1"]
    weight = next(each for each in proto.graph.initializer if each.name == "w1")
    ends = [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)]
    taken = helper.make_graph([helper.make_node("MatMul", ["h0", "w1"], ["inner"])], "taken", [], ends, [weight])
    left = helper.make_graph([helper.make_node("Identity", ["h0"], ["inner"])], "left", [], ends)
    node.CopyFrom(helper.make_node("If", ["yes"], ["m1"], then_branch=taken, else_branch=left))
    proto.graph.initializer.remove(weight)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    other = lm.with_name("branch.onnx")
    other.write_bytes(proto.SerializeToString())
    plain, found = (sensitivity(each, TOKENS, "int2-g32", sequence=20, method="rtn") for each in (lm, other))
    kls = [{each.weight: each.kl for each in one.effects} for one in (plain, found)]
    assert kls[1] == pytest.approx(kls[0], rel=1e-3)


def test_recipes_that_change_more_than_weights_are_refused(lm):
    with pytest.raises(UsageError, match="recipe 'w8a8' changes more than weights"):
        sensitivity(lm, TOKENS, ["int4", "w8a8"])
    with pytest.raises(UsageError, match="without equalize, correct"):
        sensitivity(lm, TOKENS, [parse_recipe("correct: bias\nrules:\n- weight: {format: int4}")])


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_classifiers_are_judged_too(name):
    found = sensitivity(DIGITS / f"{name}.onnx", DIGITS / "test.npz", "int2-g32", method="rtn", limit=32)
    assert len(found.effects) >= 9
    assert all(each.kl >= 0 and math.isfinite(each.loss_change) for each in found.effects)
    assert found.worst(1)[0].kl > 1e-4


@pytest.mark.parametrize("bits", [2.6, 3.3, 4.7])
def test_an_allocation_keeps_to_its_budget_and_is_never_worse_than_one_format(lm, bits, tmp_path):
    found = allocate(lm, TOKENS, bits=bits, formats=["int2-g32", "int3-g32", "int4-g32"], method="rtn", sequence=20)
    assert found.best.bits <= bits
    assert all(found.best.measured <= each.measured for each in found.tried)
    assert "int2-g32 for all" in [each.name for each in found.tried]
    assert [cost for cost, _ in found.frontier] == sorted(cost for cost, _ in found.frontier)
    write_recipe(found.recipe, tmp_path / "mixed.yaml")
    report = onnxq.quantize(lm, tmp_path / "mixed.yaml", output=tmp_path / "q.onnx")
    assert sum(each.result_bytes for each in report.quantized) == found.best.size_bytes
    loss = onnxq.evaluate(tmp_path / "q.onnx", tokens=TOKENS, sequence=20, accuracy_level=1)
    before = onnxq.evaluate(lm, tokens=TOKENS, sequence=20)
    assert found.best.loss_change == pytest.approx((loss.nll - before.nll) / loss.tokens, rel=1e-2, abs=1e-5)


def test_bits_go_where_they_matter(lm):
    found = allocate(lm, TOKENS, bits=3.4, formats=["int2-g32", "int4-g32"], method="rtn", sequence=20)
    bits = {name: rule.weight.format for rule in found.recipe.rules for name in rule.match.name}
    assert bits["w0"] == ("int4",)
    assert bits["w1"] == ("int2",)


def test_a_size_is_that_of_the_file(lm, tmp_path):
    size = lm.stat().st_size - 3 * WIDTH * WIDTH * 4 + 40_000
    found = allocate(lm, TOKENS, size_bytes=size, method="clip", sequence=20)
    report = onnxq.quantize(lm, found.recipe, output=tmp_path / "q.onnx")
    assert size - 35_000 < report.output_bytes <= size


@pytest.mark.parametrize("target", ["ort", "native", "standard", "ort-int8", "ort-cuda"])
def test_weights_take_the_bytes_that_they_take_for_the_target(lm, target, tmp_path):
    settings = {"formats": ["int4-g32", "fp6"], "method": "rtn", "sequence": 20, "target": target}
    found = allocate(lm, TOKENS, bits=9, **settings)
    report = onnxq.quantize(lm, found.recipe, output=tmp_path / "q.onnx", target=target)
    assert sum(each.result_bytes for each in report.quantized) == found.best.size_bytes
    size = report.output_bytes + 60_000
    by_size = allocate(lm, TOKENS, size_bytes=size, **settings)
    assert onnxq.quantize(lm, by_size.recipe, output=tmp_path / "s.onnx", target=target).output_bytes <= size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 4, "target": "cuda"}, "no target 'cuda'; did you mean 'ort-cuda'"),
        ({}, "give a budget"),
        ({"bits": 4, "size_bytes": 10}, "give a budget"),
        ({"bits": float("nan")}, "bits is nan"),
        ({"bits": float("inf")}, "bits is inf"),
        ({"bits": 2.0}, "the weights take 2.56 at least"),
        ({"bits": 4, "formats": []}, "at least one"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused_before_the_work(lm, arguments, message):
    seen = []
    settings = {"formats": ["int2-g32"], "method": "rtn", "sequence": 20, "progress": lambda *now: seen.append(now)}
    with pytest.raises(UsageError, match=message):
        allocate(lm, TOKENS, **settings | arguments)
    assert seen == []


def test_noise_shows_which_layers_bear_it(lm):
    found = perturb(lm, TOKENS, sqnr_db=15, sequence=20)
    weights = {each.weight: each for each in found.layers}
    assert weights["w0"].weight_kl > 5 * weights["w1"].weight_kl
    assert weights["w0"].input_kl > 5 * weights["w1"].input_kl
    assert weights["out"].tensor == "h2"
    assert weights["table"].input_kl is None
    quiet = perturb(lm, TOKENS, sqnr_db=45, sequence=20)
    assert all(a.weight_kl < b.weight_kl / 100 for a, b in zip(quiet.layers, found.layers, strict=True))
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        perturb(lm, TOKENS, kind="unifrom")
    for strength in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(UsageError, match="in dB"):
            perturb(lm, TOKENS, sqnr_db=strength)


def test_spikes_are_ranked_and_become_rules_that_leave_their_layers_alone(lm, tmp_path):
    """A token whose embedding is large spikes what the first layer reads, and by the residual what follows."""
    proto = onnx.load(lm)
    table = next(each for each in proto.graph.initializer if each.name == "table")
    large = numpy_helper.to_array(table).copy()
    large[5, 3] = 400.0
    table.CopyFrom(numpy_helper.from_array(large, "table"))
    for node in proto.graph.node:
        if node.output[0] == "h0":
            # The residual of the first layer without the spike.
            node.input[0] = "a0"
    path = lm.with_name("spiky.onnx")
    path.write_bytes(proto.SerializeToString())
    data = Calibration(TOKENS, sequence=20)
    found = spikes(path, data)
    assert (found[0].tensor, found[0].weights, found[0].largest) == ("e", ("w0",), 400.0)
    assert found[0].kappa > 100 > 5 > found[1].kappa
    (rule,) = skip_rules(found)
    recipe = onnxq.load_recipe("int4").with_rules(rule)
    report = onnxq.plan(path, recipe)
    assert {each.weight for each in report.quantized} == {"w1", "w2"}
    assert any(reason.startswith("its input has spikes: kappa") for reason in report.reasons)
    mixed = allocate(path, TOKENS, bits=4.7, formats=["int4-g32"], method="rtn", spike_limit=20, sequence=20)
    assert {each.weight for each in onnxq.plan(path, mixed.recipe).quantized} == {"w1", "w2"}
