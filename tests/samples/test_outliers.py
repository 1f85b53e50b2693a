"""The models with outliers compute what the sample computes, and have outliers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
WINDOW = np.load(CODE_LM / "heldout.npy")[None, :64].astype(np.int64)


def values(model: onnx.ModelProto, *names: str) -> list[np.ndarray]:
    for name in names:
        if name not in {each.name for each in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"input_ids": WINDOW})


@pytest.fixture
def made(tmp_path):
    def make(*options: str) -> onnx.ModelProto:
        command = [sys.executable, CODE_LM / "outliers.py", tmp_path / "made.onnx", *options]
        subprocess.run(command, check=True, capture_output=True)
        model = onnx.load(tmp_path / "made.onnx")
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


@pytest.mark.parametrize("options", [(), ("--spikes",)])
def test_outputs_stay_the_same(options, made):
    (before,), (after,) = (values(model, "logits") for model in (onnx.load(CODE_LM / "model.onnx"), made(*options)))
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_some_channels_are_loud_at_all_tokens(made):
    for activation in values(made(), "mul_31", "mul_268"):
        sizes = np.median(np.abs(activation), axis=(0, 1))
        loud = sizes > 10 * np.median(sizes)
        assert 0.005 < loud.mean() < 0.03


def test_spikes_stand_at_the_first_token_of_two_channels(made):
    (activation,) = values(made("--spikes"), "spike_1_spiked")
    sizes = np.abs(activation[0])
    assert (sizes > 250).sum() == (sizes[0] > 250).sum() == 2


def test_seed_decides_which_channels():
    spec = importlib.util.spec_from_file_location("outliers", CODE_LM / "outliers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = []
    for seed in (0, 0, 1):
        model = onnx.load(CODE_LM / "model.onnx")
        module.inject_channels(module.Network(model), np.random.default_rng(seed))
        made.append(model.SerializeToString())
    assert made[0] == made[1] != made[2]
