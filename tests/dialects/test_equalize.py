"""Steps on models as exporters write them: what they put out stays the same."""

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.recipes import parse_recipe
from onnxq.runtime.generate import Generator

MODELS = Path(__file__).parent / "models"
TOKENIZER = MODELS / "tokenizer.json"
PROMPTS = [[3, 4, 5, 6, 7], [9, 8], [20, 21, 22]]
# Activations of one layer that are scaled. Values go into the cache, so what reads them behind it is left alone.
SCALED = {
    "optimum-llama": {"norm", "gate"},
    "optimum-gpt2": {"norm"},
    "torch-qwen3": {"norm", "gate"},
    "genai-llama": {"norm", "gate"},
    "genai-qwen3": {"norm", "gate"},
    "mobius-llama": {"norm", "gate"},
}


def scores(model: Path) -> np.ndarray:
    with Generator(model, TOKENIZER, threads=1) as generator:
        scorer = generator._scorer(16)
        return np.stack([scorer.scores([[*p, *range(10, 10 + step)] for p in PROMPTS]) for step in range(3)])


@pytest.mark.parametrize("step", ["smooth", "disassemble, ratio: 0.2"])
@pytest.mark.parametrize("name", SCALED)
def test_scores_stay_the_same_behind_a_cache_too(name, step, tmp_path):
    path = MODELS / f"{name}.onnx"
    tokens = np.random.default_rng(0).integers(3, 50, 64)
    report = onnxq.quantize(
        path,
        parse_recipe(f"equalize: [{{method: {step}}}]"),
        output=tmp_path / "model.onnx",
        calibration=onnxq.Calibration(tokens, sequence=16),
    )
    found = {str(each.done).split()[2] for each in report.changes if each.done}
    assert found == SCALED[name] if step == "smooth" else found <= SCALED[name]
    before, after = scores(path), scores(tmp_path / "model.onnx")
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
