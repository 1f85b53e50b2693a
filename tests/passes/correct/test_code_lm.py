"""What goes beyond rounding, from end to end, on the first block of the sample language model."""

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.recipes import parse_recipe
from onnxq.runtime.session import session

SAMPLE = Path(__file__).parents[3] / "samples" / "code_lm"
MODEL = SAMPLE / "model.onnx"
# The products of the first block.
FIRST = ("node_linear", *(f"node_linear_{at}" for at in range(1, 7)))
TOKENS = np.load(SAMPLE / "calibration.npy")[:512].reshape(4, 128).astype(np.int64)


def logits(path: Path) -> np.ndarray:
    running = session(path, accuracy_level=1)
    feeds = {each.name: np.ones_like(TOKENS) if "mask" in each.name else TOKENS for each in running.get_inputs()}
    return running.run(None, feeds)[0]


@pytest.fixture(scope="module")
def error(tmp_path_factory):
    """Squared error of the logits after a conversion of the first block, and its report."""
    exact, output = logits(MODEL), tmp_path_factory.mktemp("made") / "q.onnx"

    def of(text: str) -> tuple[float, onnxq.Report]:
        data = onnxq.Calibration(TOKENS, samples=None)
        report = onnxq.quantize(MODEL, parse_recipe(text), output=output, include=FIRST, calibration=data, force=True)
        assert report.quantized
        return float(np.square(logits(output) - exact).mean()), report

    return of


def test_biases_lower_what_rounding_takes(error):
    rule = "rules:\n- weight: {format: uint2, symmetric: false, granularity: group, group_size: 32}"
    without, _ = error(rule)
    corrected, report = error("correct: bias\n" + rule)
    assert corrected < 0.98 * without
    assert [each.done for each in report.changes] == ["in a new Add"] * len(report.quantized)


def test_norms_take_factors_of_the_layers_behind_them(error):
    rule = "rules:\n- weight: {format: uint2, symmetric: false, granularity: group, group_size: 32, method: gptq}"
    without, _ = error(rule)
    corrected, report = error("correct: [norm, bias]\n" + rule)
    done = {each.place: each.done for each in report.changes if each.step == "correct: norm" and each.done}
    assert len(done) == 2
    assert all("smaller" in words for words in done.values())
    assert corrected < 1.05 * without


def test_erq_does_better_than_rounding_to_nearest(error):
    errors = [error(f"rules:\n- weight: {{format: int3, method: {method}}}")[0] for method in ("rtn", "erq")]
    assert errors[1] < 0.8 * errors[0]
