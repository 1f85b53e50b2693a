"""Spikes put into a language model so that it stays the same: they are found, and sparing their layers repairs it."""

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxq
from onnxq.analysis.spikes import skip_rules, spikes
from onnxq.recipes import parse_recipe
from onnxq.statistics.calibration import Calibration

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
# Inputs of two down projections: of the second layer and of the last.
SPIKED = {"val_284_float16": 11, "val_804_float16": 500}
HEIGHT = 300.0
SEQUENCE = 64

pytest.importorskip("onnxruntime")


def with_spikes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """One channel of an input gets a spike at the first token, a new channel gets it too, with the opposite weights."""
    made = copy.deepcopy(proto)
    graph = made.graph
    for name, channel in SPIKED.items():
        tensor = next(each for each in graph.initializer if each.name == name)
        weight = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.concatenate((weight, -weight[[channel]])), name))
        at, product = next(
            (at, node) for at, node in enumerate(graph.node) if list(node.input[1:]) == [name.removesuffix("_float16")]
        )
        first = np.zeros((SEQUENCE, 1), np.float32)
        first[0] = HEIGHT
        one_hot = np.zeros(len(weight), np.float32)
        one_hot[channel] = 1
        constants = {"none": np.float32(0), "first": first, "one_hot": one_hot, "last": np.array([-1])}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(each), name + key) for key, each in constants.items()
        )
        x, (none, first_name, one, last) = product.input[0], (name + key for key in constants)
        nodes = [
            helper.make_node("Mul", [x, none], [name + "zero"]),
            helper.make_node("ReduceSum", [name + "zero", last], [name + "column"]),
            helper.make_node("Add", [name + "column", first_name], [name + "spike"]),
            helper.make_node("Mul", [name + "spike", one], [name + "placed"]),
            helper.make_node("Add", [x, name + "placed"], [name + "spiked"]),
            helper.make_node("Concat", [name + "spiked", name + "spike"], [name + "x"], axis=-1),
        ]
        product.input[0] = name + "x"
        for offset, node in enumerate(nodes):
            graph.node.insert(at + offset, node)
    return made


def test_the_two_spiked_layers_rank_first_and_leaving_them_float_closes_the_gap(tmp_path):
    plain = onnx.load(CODE_LM / "model.onnx")
    path = tmp_path / "spiky.onnx"
    path.write_bytes(with_spikes(plain).SerializeToString())
    data = Calibration(CODE_LM / "calibration.npy", sequence=SEQUENCE, samples=8)
    found = spikes(path, data)
    assert {weight for each in found[:2] for weight in each.weights} == set(SPIKED)
    assert found[1].kappa > 20 > found[2].kappa

    rules = skip_rules(found)
    assert len(rules) == len(SPIKED)
    w8a8 = parse_recipe("rules: [{weight: {format: int8}, activation: {format: int8}}]")

    def nll(model: Path, recipe: onnxq.Recipe | None = None) -> float:
        if recipe is not None:
            onnxq.quantize(model, recipe, output=tmp_path / "w8a8.onnx", calibration=data, force=True)
            model = tmp_path / "w8a8.onnx"
        tokens = CODE_LM / "heldout.npy"
        return math.log(onnxq.evaluate(model, tokens=tokens, sequence=SEQUENCE, limit=32).value)

    exact = nll(path)
    assert exact == pytest.approx(nll(CODE_LM / "model.onnx"), abs=1e-3)
    broken, repaired = nll(path, w8a8) - exact, nll(path, w8a8.with_rules(*rules)) - exact
    assert broken > 0.02
    assert repaired < 0.1 * broken
