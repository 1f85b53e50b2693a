"""Methods on the language model: what they take back on held-out text of what rounding to nearest loses."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.recipes import parse_recipe

SAMPLE = Path(__file__).parents[2] / "samples" / "code_lm"
INT2 = "format: uint2, granularity: group, group_size: 32, symmetric: false"
INT3 = "format: int3, symmetric: false"


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """Nats a token that weights of a spec cost, calibrated on so many windows."""
    tokens, output = np.load(SAMPLE / "heldout.npy")[: 24 * 256], tmp_path_factory.mktemp("methods") / "q.onnx"

    def loss(path: Path) -> float:
        return math.log(onnxq.evaluate(path, tokens=tokens, sequence=256, accuracy_level=1).value)

    exact = loss(SAMPLE / "model.onnx")

    def of(spec: str, samples: int = 0) -> float:
        data = onnxq.Calibration(SAMPLE / "calibration.npy", samples=samples) if samples else None
        recipe = parse_recipe(f"rules:\n- weight: {{{spec}}}")
        onnxq.quantize(SAMPLE / "model.onnx", recipe, output=output, force=True, calibration=data)
        return loss(output) - exact

    return of


@pytest.mark.slow
def test_two_bits_keep_more_than_half_of_what_rounding_loses(lost) -> None:
    nearest, gptq = lost(INT2), lost(f"{INT2}, method: gptq", 24)
    assert 1 - gptq / nearest > 0.45
    assert lost(f"{INT2}, method: gptq, low_rank: 16", 24) < gptq


@pytest.mark.slow
def test_half_a_percent_of_outliers_keeps_a_fifth_of_what_three_bits_lose(lost) -> None:
    assert 1 - lost(f"{INT3}, outliers: 0.005") / lost(INT3) > 0.2


@pytest.mark.slow
def test_learned_tables_keep_a_third_of_what_two_bits_lose(lost) -> None:
    spec = "format: codebook2, granularity: group, group_size: 32, scale: fp16"
    nearest, learned = lost(spec), lost(f"{spec}, method: kmeans")
    assert 1 - learned / nearest > 0.33


@pytest.mark.slow
def test_binary_weights_need_many_in_eight_bits(lost) -> None:
    spec = "format: binary, granularity: group, group_size: 128, scale: fp16, method: pb-llm"
    few, many = (lost(f"{spec}, salient: {share}", 8) for share in (0.1, 0.3))
    assert many < 0.4 * few
