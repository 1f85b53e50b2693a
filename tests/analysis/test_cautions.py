"""A conversion says where the file gets smaller and memory and time do not."""

from pathlib import Path

import pytest

import onnxq
from onnxq.analysis.cautions import cautions
from onnxq.analysis.execution import Execution
from onnxq.recipes import parse_recipe

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
UNPACKED = "unpacked to float when the model is loaded, which saves room on the disk, but no memory and no time"


def said(weight: str, tmp_path: Path, target: str = "ort") -> list[str]:
    """What is said of two weights of the sample that are quantized alike."""
    report = onnxq.quantize(
        CODE_LM / "model.onnx",
        parse_recipe(f"rules: [{{weight: {weight}}}]"),
        output=tmp_path / "m.onnx",
        include=("*layers.[01].attention.q_proj*",),
        calibration=onnxq.Calibration(CODE_LM / "calibration.npy", samples=2, sequence=32),
        target=target,
    )
    assert len(report.quantized) == 2
    return [each for each in report.warnings if "data was not used" not in each]


@pytest.mark.parametrize(
    ("weight", "way_out"),
    [
        ("{format: fp6_e2m3, outliers: 0.01}", "no kernel knows outliers; leave them out, or"),
        ("{format: codebook4, method: kmeans}", "no kernel knows codebooks; nf4 and integers have one"),
        ("{format: binary, method: pb-llm, salient: 0.1}", "no kernel knows what pb-llm stores"),
    ],
)
def test_weights_that_no_kernel_runs_are_a_warning_with_a_way_out(weight: str, way_out: str, tmp_path: Path) -> None:
    (warning,) = said(weight, tmp_path)
    assert warning.startswith(f"2 weights {UNPACKED}: {way_out}")


@pytest.mark.parametrize("target", ["ort", "ort-cuda"])
def test_weights_that_a_kernel_runs_are_none(target: str, tmp_path: Path) -> None:
    assert said("{format: fp6_e2m3}", tmp_path, target) == []


def test_without_the_library_it_is_said_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXQ_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    (warning,) = said("{format: fp6_e2m3}", tmp_path)
    assert f"2 weights {UNPACKED}: onnxq's kernels are not here (there is no file" in warning


def test_one_sentence_a_cause() -> None:
    found = Execution(functions={"DequantizeFP6E2M3": 9, "DequantizeINT8": 1}, dequantized=1, rounded=1)
    assert [each.split(":")[0] for each in cautions(found)] == [
        f"10 weights {UNPACKED}",
        "1 weight expanded to float again in every run, which takes longer than float weights do",
        "1 activation rounded by functions, which takes time",
    ]
    assert list(cautions(Execution(plain=3))) == []
