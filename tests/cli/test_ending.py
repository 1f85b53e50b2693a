"""How a command line ends: exit codes, messages, signals and pipes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from onnxq import api

ONNXQ = (sys.executable, "-m", "onnxq")


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "No such command", ["quantise", "m.onnx"]),
        (2, "--frce", ["quantize", "m.onnx", "--frce"]),
        (2, "-o OUT.onnx", ["quantize", "{model}"]),
        (2, "did you mean 'standard'", ["quantize", "{model}", "-o", "o.onnx", "--target", "standart"]),
        (2, "--dry-run", ["quantize", "{model}", "--dry-run", "--report", "r.json"]),
        (3, "did you mean 'fp6'", ["plan", "{model}", "--recipe", "fp66"]),
        (3, "unknown key", ["plan", "{model}", "--recipe", "{folder}/bad.yaml"]),
        (4, "missing.onnx", ["plan", "{folder}/missing.onnx"]),
        (4, "bad.yaml", ["inspect", "{folder}/bad.yaml"]),
        (6, "does not exist", ["quantize", "{model}", "-o", "{folder}/no/o.onnx"]),
        (2, "either tokens", ["evaluate", "{model}"]),
        (7, "t.npy", ["evaluate", "{model}", "--tokens", "{folder}/t.npy"]),
        (7, "d.npz", ["compare", "{model}", "{model}", "--data", "{folder}/d.npz"]),
        (7, "tokenizer", ["generate", "{model}", "--tokenizer", "{folder}/t.json", "--prompt", "a"]),
        (2, "--sample DIR", ["demo", "--sample", "{folder}"]),
    ],
)
def test_a_mistake_is_one_message_on_stderr_and_an_exit_code(
    onnxq, model, tmp_path, monkeypatch, code, words, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("rulez: []\n")
    done = onnxq(*(each.format(model=model, folder=tmp_path) for each in arguments))
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_an_unexpected_exception_is_called_a_defect(onnxq, model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(api, "plan", fail)
    done = onnxq("plan", model)
    assert done.code == 70
    assert "defect of onnxq" in done.err
    assert "KeyError: 'surprise'" in done.err


def test_too_little_memory_is_no_defect(onnxq, model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(api, "plan", fail)
    done = onnxq("plan", model)
    assert (done.code, done.err) == (1, "error: there is not enough memory\n")


def test_the_handlers_of_signals_are_given_back(onnxq):
    before = signal.getsignal(signal.SIGTERM)
    assert onnxq("--version").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def usual_signals():
    """Handlers as they are in a terminal: who runs the tests in the background or under nohup has some ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {each: signal.signal(each, handler) for each, handler in usual.items()}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_conversion_and_leaves_nothing(onnxq, model, monkeypatch, number, code):
    seen = []

    def quantize(*_: object, **__: object) -> None:
        seen.extend(path.name for path in model.parent.iterdir())
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(api, "convert", quantize)
    done = onnxq("quantize", model, "-o", model.with_name("small.onnx"))
    assert done.code == code
    assert any(name.startswith(".onnxq-staging-") for name in seen)
    assert list(model.parent.iterdir()) == [model]
    assert "Traceback" not in done.err


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*ONNXQ, "formats"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_colours_in_a_log_are_no_terminal(onnxq, model, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    done = onnxq("quantize", model, "-o", model.with_name("small.onnx"))
    assert done.err == "", "a progress bar"
    assert "rest of the file" in done.out
    assert "bits each" in done.out


def test_what_the_encoding_lacks_is_replaced():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([*ONNXQ, "formats"], capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0
    assert b"fp6_e2m3" in done.stdout
