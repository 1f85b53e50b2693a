"""GPTQ on the language model: layer by layer it takes back most of what rounding to nearest loses on held-out text."""

import math
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.recipes import parse_recipe

SAMPLE = Path(__file__).parents[2] / "samples" / "code_lm"
INT2 = "rules:\n- weight: {{format: uint2, granularity: group, group_size: 32, symmetric: false, method: {}{}}}"


@pytest.mark.slow
def test_two_bits_keep_more_than_half_of_what_rounding_loses(tmp_path: Path) -> None:
    tokens = np.load(SAMPLE / "heldout.npy")[: 24 * 256]

    def loss(path: Path) -> float:
        return math.log(onnxq.evaluate(path, tokens=tokens, sequence=256, accuracy_level=1).value)

    def lost(method: str, more: str = "") -> float:
        data = onnxq.Calibration(SAMPLE / "calibration.npy", samples=24) if method == "gptq" else None
        output = tmp_path / "q.onnx"
        onnxq.quantize(
            SAMPLE / "model.onnx", parse_recipe(INT2.format(method, more)), output=output, force=True, calibration=data
        )
        return loss(output) - loss(SAMPLE / "model.onnx")

    nearest, gptq, with_rank = lost("rtn"), lost("gptq"), lost("gptq", ", low_rank: 16")
    assert 1 - gptq / nearest > 0.45
    assert with_rank < gptq
