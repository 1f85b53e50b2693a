"""Every script in samples/ runs in an empty folder, says what it should, and leaves only its output there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxq

SAMPLES = Path(__file__).parents[2] / "samples"
# Script -> (arguments, what it prints, what it leaves).
SCRIPTS = {
    "quantize_language_model.py": (
        ["--windows", "4"],
        (
            r"10,681,086 bytes -> 5,4\d\d,\d{3}; 42 weights quantized\n.*perplexity [\d.]+ on 1,020 tokens\n"
            r".*code_lm.onnx: perplexity .*\n  42 onnxq MatMulFP6E2M3 in a native kernel, on packed weights\n.*    def "
        ),
        {"code_lm.onnx"},
    ),
    "quantize_vision.py": (
        [],
        r"resnet: .*accuracy 99\.81% -> 9[89]\.\d\d% of 540 images\nvit: .*accuracy 99\.07% -> 9[89]\.\d\d% of 540",
        {"vision.yaml", "resnet-quantized.onnx", "vit-quantized.onnx"},
    ),
    "custom_recipe.py": (
        ["--windows", "4"],
        (
            r"Gather +int8, per channel\n.*fp6_e2m3, per channel\n.*fp4_e2m1, groups of 32, fp16 scales\n.*"
            r"-> 3,[56]\d\d,\d{3}, in fp4_e2m1, fp6_e2m3, int8\nperplexity [\d.]+ on 1,020 tokens"
        ),
        {"mixed.yaml", "mixed.onnx"},
    ),
    "compare_layers.py": (
        ["--worst", "3"],
        r"output logits: 2\d\.\d dB, cosine 0\.99\d+\n\d{3} tensors inside, the worst first:\n(.* dB .*\n){3}\Z",
        {"compared.onnx"},
    ),
}


def test_every_script_is_here_and_short():
    scripts = {path.name: path for path in SAMPLES.glob("*.py")}
    assert scripts.keys() == SCRIPTS.keys()
    for name, path in scripts.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_runs(name: str, tmp_path: Path) -> None:
    arguments, printed, left = SCRIPTS[name]
    environment = os.environ | {"PYTHONPATH": str(Path(onnxq.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", SAMPLES / name, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout, re.DOTALL), done.stdout
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_says_how_it_is_used(name: str) -> None:
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"({name})" in text
    assert f"python samples/{name}" in (SAMPLES / name).read_text(encoding="utf-8")
