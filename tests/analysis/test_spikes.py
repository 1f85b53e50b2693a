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


def with_int8_inputs(proto: onnx.ModelProto, found: tuple[onnxq.analysis.spikes.Spike, ...], skipped: set[str]):
    """Every input of a layer rounded to int8 with one scale for all tokens, but for those of some nodes."""
    made = copy.deepcopy(proto)
    graph = made.graph
    readers = {node: spike for spike in found for node in spike.nodes if node not in skipped}
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero_point"))
    nodes, rounded = [], set()
    for node in graph.node:
        if spike := readers.get(node.name):
            name = spike.tensor
            if name not in rounded:
                rounded.add(name)
                graph.initializer.append(numpy_helper.from_array(np.float32(spike.largest / 127), name + "scale"))
                scale = [name + "scale", "zero_point"]
                nodes.append(helper.make_node("QuantizeLinear", [name, *scale], [name + "codes"]))
                nodes.append(helper.make_node("DequantizeLinear", [name + "codes", *scale], [name + "rounded"]))
            node.input[0] = name + "rounded"
        nodes.append(copy.deepcopy(node))
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def test_the_two_spiked_layers_rank_first_and_leaving_them_float_closes_the_gap(tmp_path):
    plain = onnx.load(CODE_LM / "model.onnx")
    path = tmp_path / "spiky.onnx"
    path.write_bytes(with_spikes(plain).SerializeToString())
    spiky = onnx.load(path)
    found = spikes(path, Calibration(CODE_LM / "calibration.npy", sequence=SEQUENCE, samples=8))
    assert {weight for each in found[:2] for weight in each.weights} == set(SPIKED)
    assert found[1].kappa > 20 > found[2].kappa

    rules = skip_rules(found)
    assert len(rules) == 2
    recipe = onnxq.load_recipe("int8").with_rules(*rules)
    skipped = [each for each in onnxq.plan(path, recipe).entries if each.reason and "spikes" in each.reason]
    assert {each.weight for each in skipped} == set(SPIKED)
    nodes = {node for each in skipped for node in each.readers}

    def nll(model: onnx.ModelProto) -> float:
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        tokens = CODE_LM / "heldout.npy"
        return math.log(onnxq.evaluate(tmp_path / "m.onnx", tokens=tokens, sequence=SEQUENCE, limit=32).value)

    exact, spiked = nll(plain), nll(spiky)
    assert spiked == pytest.approx(exact, abs=1e-3)
    broken, repaired = (nll(with_int8_inputs(spiky, found, skip)) - spiked for skip in (set(), nodes))
    assert broken > 0.02
    assert repaired < 0.1 * broken
