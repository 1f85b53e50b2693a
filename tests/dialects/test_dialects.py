"""Models as exporters write them, tiny and with random weights (tools/make_dialects.py made them)."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import ModelError
from onnxq.model.load import load
from onnxq.passes.calibrate import reading_of
from onnxq.passes.plan import make_plan
from onnxq.recipes import load_recipe, parse_recipe
from onnxq.runtime.genai import register_in_folder
from onnxq.runtime.generate import Generator
from onnxq.runtime.native import native_library

MODELS = Path(__file__).parent / "models"
TOKENIZER = MODELS / "tokenizer.json"
EMBEDDING, HEAD = (f"{role}: off unless a rule asks for it with role: {role}" for role in ("embedding", "head"))
# Weights that are quantized by default, and why the others are not.
EXPECTED = {
    "optimum-llama": (7, {EMBEDDING: 1, HEAD: 1, "read by Expand, not as a weight": 1}),
    "optimum-gpt2": (4, {EMBEDDING: 2}),
    "torch-qwen3": (7, {EMBEDDING: 1, HEAD: 1, "read by Expand, not as a weight": 1}),
    # Queries, keys and values are one weight.
    "genai-llama": (5, {EMBEDDING: 1, HEAD: 1, "a table of rotary positions": 2}),
    "genai-qwen3": (5, {EMBEDDING: 1, HEAD: 1, "a table of rotary positions": 2}),
    "mobius-llama": (7, {EMBEDDING: 1, HEAD: 1, "a table of rotary positions": 2}),
}
QUANTIZED_ALREADY = {
    EMBEDDING: 1,
    "a table of rotary positions": 2,
    "a part of a weight that is quantized already": 6,
}
PROMPTS = [[3, 4, 5, 6, 7], [9, 8], [20, 21, 22]]


def scores(model: Path, prompts=PROMPTS, steps=3) -> np.ndarray:
    """Scores after the prompts and after some more tokens, each read behind the cache: [steps + 1, batch, words]."""
    with Generator(model, TOKENIZER, threads=1) as generator:
        assert generator.has_cache
        scorer = generator._scorer(16)
        return np.stack([scorer.scores([[*p, *range(10, 10 + step)] for p in prompts]) for step in range(steps + 1)])


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    return 10 * np.log10((reference**2).sum() / ((reference - found) ** 2).sum())


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_are_found_and_the_others_have_a_reason(name):
    report = onnxq.plan(MODELS / f"{name}.onnx", "fp6")
    assert (len(report.quantized), report.reasons) == EXPECTED[name]


def test_what_is_quantized_already_is_left_alone():
    report = onnxq.plan(MODELS / "genai-llama-int4.onnx", "fp6")
    assert (len(report.quantized), report.reasons) == (0, QUANTIZED_ALREADY)


@pytest.mark.parametrize("name", [*EXPECTED, "genai-llama-int4"])
def test_a_batch_behind_a_cache_scores_as_each_prompt_read_whole(name):
    path = MODELS / f"{name}.onnx"
    together = scores(path)
    for number, prompt in enumerate(PROMPTS):
        whole = scores(path, [[*prompt, 10, 11, 12]], steps=0)
        np.testing.assert_allclose(together[3, number], whole[0, 0], atol=2e-3 if "int4" in name else 1e-5)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("recipe", "least_db"), [("fp6", 24), ("int4", 12)])
def test_quantized_models_score_nearly_as_the_float_one(name, recipe, least_db, tmp_path):
    path = MODELS / f"{name}.onnx"
    onnxq.quantize(path, recipe, output=tmp_path / "small.onnx")
    reference = scores(path)
    assert least_db < sqnr_db(reference, scores(tmp_path / "small.onnx")) < least_db + 40


@pytest.mark.parametrize("name", EXPECTED)
def test_every_quantized_weight_can_be_calibrated(name, tmp_path):
    model = load(MODELS / f"{name}.onnx")
    made, weights = make_plan(model.ir, load_recipe("int4-gptq"), "ort")
    chosen = [weight for weight, each in zip(weights, made, strict=True) if each.spec is not None]
    assert all(reading_of(weight, model.ir.graph) is not None for weight in chosen)
    tokens = np.random.default_rng(0).integers(3, 50, 64)
    report = onnxq.quantize(
        model.path,
        "int4-gptq",
        output=tmp_path / "small.onnx",
        calibration=onnxq.Calibration(tokens, sequence=16),
        include=[weight.name for weight in chosen],
    )
    assert len(report.quantized) == EXPECTED[name][0]


def test_a_grouped_model_is_evaluated_and_compared(tmp_path):
    path, small = MODELS / "genai-llama.onnx", tmp_path / "small.onnx"
    onnxq.quantize(path, "fp6", output=small)
    tokens = np.random.default_rng(0).integers(3, 50, 128)
    assert onnxq.evaluate(small, tokens=tokens, sequence=32).value > 1
    assert onnxq.compare(path, small, data=tokens, sequence=32).outputs[0].sqnr_db > 20


@pytest.fixture
def genai_folder(tmp_path):
    """A folder of onnxruntime-genai with a model that onnxq quantized to FP6."""
    onnxq.quantize(MODELS / "genai-llama.onnx", "fp6", output=tmp_path / "model.onnx")
    for name in ("genai_config.json", "tokenizer.json"):
        shutil.copy(MODELS / name, tmp_path)
    return tmp_path


@pytest.mark.skipif(native_library().problem is not None, reason="the native library is not built")
def test_the_library_is_registered_in_a_folder_of_genai(genai_folder):
    copied = register_in_folder(genai_folder)
    first = (genai_folder / "genai_config.json").read_text()
    assert copied.read_bytes() == native_library().path.read_bytes()
    assert f'"custom_ops_library": "{copied.name}"' in first
    register_in_folder(genai_folder)
    assert (genai_folder / "genai_config.json").read_text() == first
    with pytest.raises(ModelError, match=r"has no genai_config\.json"):
        register_in_folder(MODELS.parent)


@pytest.mark.skipif(native_library().problem is not None, reason="the native library is not built")
def test_onnxruntime_genai_writes_the_same_text_with_the_library(genai_folder):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    prompt = [3, 4]
    with Generator(genai_folder / "model.onnx", TOKENIZER) as generator:
        (expected,) = generator.generate(["w3 w4"], max_new_tokens=8)
    # Without the functions, only the library can run the operators.
    path = genai_folder / "model.onnx"
    model = onnx.load(path)
    del model.functions[:]
    onnx.save(model, path)
    register_in_folder(genai_folder)
    opened = genai.Model(str(genai_folder))
    settings = genai.GeneratorParams(opened)
    settings.set_search_options(max_length=len(prompt) + 8, do_sample=False)
    generator = genai.Generator(opened, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == [*prompt, *expected.tokens]


@pytest.mark.parametrize("name", EXPECTED)
def test_rotations_keep_what_a_model_computes(name, tmp_path):
    path, made = MODELS / f"{name}.onnx", tmp_path / "rotated.onnx"
    report = onnxq.quantize(path, parse_recipe("equalize: [{method: rotate, choose: false}]"), output=made)
    np.testing.assert_allclose(scores(made), scores(path), atol=1e-5)
    done = {each.done for each in report.changes}
    assert "input of a product rotated by an operator" in done
    # Norms of onnxruntime's own, and attention that keeps its values, are left alone.
    assert ("residual stream rotated" in done) == name.startswith(("optimum", "torch"))
