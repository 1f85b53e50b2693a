import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
CODE_LM = SAMPLES / "code_lm"
DIGITS = SAMPLES / "digits"
LARGEST_BYTES = {
    CODE_LM / "model.onnx": 12_000_000,
    DIGITS / "resnet.onnx": 2_000_000,
    DIGITS / "vit.onnx": 2_000_000,
}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def window_losses(session: onnxruntime.InferenceSession, windows: np.ndarray) -> np.ndarray:
    logits = session.run(["logits"], {"input_ids": windows})[0][:, :-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, windows[:, 1:, None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - chosen


@pytest.mark.parametrize("path", LARGEST_BYTES, ids=lambda path: path.name)
def test_models_are_valid_self_contained_and_small(path):
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert model.ir_version <= 10
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert path.stat().st_size <= LARGEST_BYTES[path]


@pytest.mark.parametrize("path", LARGEST_BYTES, ids=lambda path: path.name)
def test_models_tell_nothing_of_the_machine_they_were_exported_on(path):
    raw = path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py"):
        assert trace not in raw


def test_code_lm_reaches_its_recorded_perplexity_on_the_subset():
    record = json.loads((CODE_LM / "float.json").read_text())
    stream = np.load(CODE_LM / "heldout.npy").astype(np.int64)
    assert stream.size == record["tokens"]
    count, window = record["subset_windows"], record["window"]
    losses = window_losses(session_of(CODE_LM / "model.onnx"), stream[: count * window].reshape(count, window))
    assert losses.shape == (count, window - 1)
    assert losses.mean() == pytest.approx(record["subset_nll"], abs=1e-4)
    assert np.exp(record["nll"]) == pytest.approx(record["perplexity"])
    assert record["perplexity"] < 9


def test_code_lm_takes_any_batch_and_sequence_and_looks_at_no_later_token():
    session = session_of(CODE_LM / "model.onnx")
    tokens = np.load(CODE_LM / "heldout.npy")[:1024].astype(np.int64).reshape(2, 512)
    long = session.run(None, {"input_ids": tokens})[0]
    short = session.run(None, {"input_ids": tokens[:1, :100]})[0]
    assert long.shape == (2, 512, 4096)
    assert long.dtype == np.float32
    np.testing.assert_allclose(short, long[:1, :100], atol=1e-3)


def test_code_lm_stores_each_large_weight_once_as_float16():
    graph = onnx.load(CODE_LM / "model.onnx").graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 4096]
    assert len(large) == 1 + 6 * 7
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in large)
    casts = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    assert {tensor.name for tensor in large} <= casts


def test_code_lm_held_out_text_is_in_no_calibration_text():
    def runs(name: str, length: int = 32) -> set[bytes]:
        stream = np.load(CODE_LM / name)
        assert stream.dtype == np.uint16
        return {stream[i : i + length].tobytes() for i in range(stream.size - length + 1)}

    assert not runs("heldout.npy") & runs("calibration.npy")


def test_code_lm_tokenizer_gives_back_the_text():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(CODE_LM / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4096
    text = "def f(x):\n    return 'π' + x  # say\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    held_out = np.load(CODE_LM / "heldout.npy")
    assert "self." in tokenizer.decode(held_out.tolist())


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_digits_models_reach_their_recorded_accuracy(name):
    record = json.loads((DIGITS / "float.json").read_text())
    test = np.load(DIGITS / "test.npz")
    logits = session_of(DIGITS / f"{name}.onnx").run(["logits"], {"image": test["image"]})[0]
    accuracy = (logits.argmax(1) == test["labels"]).mean()
    assert accuracy >= 0.98
    assert accuracy == pytest.approx(record[name]["accuracy"], abs=1 / len(logits))


def test_digits_calibration_images_are_no_test_images():
    test = np.load(DIGITS / "test.npz")["image"]
    calibration = np.load(DIGITS / "calibration.npz")["image"]
    assert test.shape == (540, 1, 8, 8)
    assert calibration.shape == (256, 1, 8, 8)
    assert test.dtype == calibration.dtype == np.float32
    assert not {image.tobytes() for image in test} & {image.tobytes() for image in calibration}


def test_resnet_keeps_its_batch_normalization():
    types = [node.op_type for node in onnx.load(DIGITS / "resnet.onnx").graph.node]
    assert types.count("BatchNormalization") == types.count("Conv") == 9


@pytest.mark.parametrize("script", [CODE_LM / "train.py", DIGITS / "train.py"], ids=lambda path: path.parent.name)
def test_scripts_say_how_they_are_used(script):
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
