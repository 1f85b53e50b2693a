"""The sample language model with joined products: it writes what it wrote, and can be looked at as before."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.analysis.stored import find_stored
from onnxq.model.load import load
from onnxq.recipes import parse_recipe
from onnxq.runtime.generate import Generator

CODE_LM = Path(__file__).parents[3] / "samples" / "code_lm"
LAYERS = 6
CACHE = "extends: fp6\ncache: {key: {format: int8}, value: {format: int8}}"


@pytest.fixture(scope="module")
def made(sample_with_cache, tmp_path_factory):
    """The sample quantized to FP6, with products joined and apart, and the report of the first."""
    folder, source = tmp_path_factory.mktemp("joined"), sample_with_cache("grouped")
    onnxq.quantize(source, "fp6", output=folder / "apart.onnx")
    report = onnxq.quantize(source, "fp6", output=folder / "joined.onnx", target="ort-cuda")
    return folder / "joined.onnx", folder / "apart.onnx", report


def test_all_attentions_and_feed_forward_layers_have_one_product(made):
    joined, _, report = made
    operators = [node.op_type for node in load(joined).ir.graph]
    assert operators.count("SwiGLUFP6E2M3Tiled") == LAYERS
    assert operators.count("MatMulFP6E2M3Tiled") == 3 * LAYERS
    assert not {"Sigmoid", "Mul"} & set(operators)
    assert len(report.quantized) == 7 * LAYERS
    assert [each.done for each in report.changes].count("one product with 3 weights") == LAYERS


def test_it_writes_the_same_tokens(made):
    written = []
    for path in made[:2]:
        with Generator(path, CODE_LM / "tokenizer.json", threads=1) as generator:
            prompts = ["def main(", "import os\nimport"]
            written.append([each.tokens for each in generator.generate(prompts, max_new_tokens=16)])
    assert written[0] == written[1]


def test_it_is_evaluated_compared_and_inspected(made, sample_with_cache):
    joined, apart, _ = made
    tokens = np.load(CODE_LM / "heldout.npy")[:512]
    values = [onnxq.evaluate(path, tokens=tokens, sequence=128, threads=1).value for path in (joined, apart)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    comparison = onnxq.compare(sample_with_cache("grouped"), joined, data=tokens, sequence=128, limit=2)
    assert comparison.outputs[0].sqnr_db > 20
    assert "layers.3.mlp.inner" in {each.name for each in comparison.layers}
    labels = [each.label for each in find_stored(load(joined).ir)]
    assert labels[0].startswith("layers.0.attention.{q,k,v}_proj.weight")
    assert labels[2].startswith("layers.0.mlp.{gate,up}_proj.weight")


def test_a_cache_in_few_bits_goes_with_it(sample_with_cache, tmp_path):
    found = []
    calibration = onnxq.Calibration(CODE_LM / "calibration.npy", samples=8, sequence=64)
    for target in ("ort", "ort-cuda"):
        path = tmp_path / f"{target}.onnx"
        source, recipe = sample_with_cache("grouped"), parse_recipe(CACHE)
        onnxq.quantize(source, recipe, output=path, target=target, calibration=calibration)
        settings = {"tokens": CODE_LM / "heldout.npy", "limit": 2, "sequence": 64, "cached": True, "threads": 1}
        found.append(onnxq.evaluate(path, **settings).value)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["", "cache: {key: {format: int8}, value: {format: int8}}"])
@pytest.mark.parametrize("recipe", ["fp6", "fp4", "int4"])
def test_kernels_on_cuda_evaluate_as_functions_on_the_cpu(recipe, cache, sample_with_cache, tmp_path):
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime has no CUDAExecutionProvider")
    source, path = sample_with_cache("grouped", onnx.TensorProto.FLOAT16), tmp_path / "joined.onnx"
    calibration = onnxq.Calibration(CODE_LM / "calibration.npy", samples=8, sequence=64) if cache else None
    asked = parse_recipe(f"extends: {recipe}\n{cache}")
    onnxq.quantize(source, asked, output=path, target="ort-cuda", calibration=calibration)
    settings = {"tokens": CODE_LM / "heldout.npy", "limit": 2, "sequence": 64, "cached": True}
    found = [onnxq.evaluate(path, providers=[provider], **settings).value for provider in ("cuda", "cpu")]
    assert found[0] == pytest.approx(found[1], rel=5e-3)


def test_no_more_than_a_family_is_held_whatever_the_order_of_the_weights(sample_with_cache, tmp_path):
    model, done = onnx.load(sample_with_cache("grouped")), []
    by_kind = sorted(model.graph.initializer, key=lambda each: each.name.split(".")[::-1])
    del model.graph.initializer[:]
    model.graph.initializer.extend(by_kind)
    onnx.save(model, tmp_path / "model.onnx")
    report = onnxq.quantize(
        tmp_path / "model.onnx",
        "fp6",
        output=tmp_path / "joined.onnx",
        target="ort-cuda",
        progress=lambda name, *_: done.append(name),
    )
    for layer in range(LAYERS):
        for module, parts in (("attention", "qkv"), ("mlp", ("gate", "up"))):
            places = [done.index(f"layers.{layer}.{module}.{part}_proj.weight") for part in parts]
            assert max(places) - min(places) == len(parts) - 1
    # What is reported keeps the order of the model.
    assert [each.weight for each in report.quantized] == [each.name for each in by_kind if each.name in set(done)]
