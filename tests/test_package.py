import subprocess
import sys

import pytest

import onnxq

HEAVY = ("torch", "onnxruntime", "cupy", "onnxscript", "onnx", "numpy")


@pytest.mark.parametrize(
    "code",
    [
        "import onnxq",
        "import onnxq; onnxq.OnnxqError",
        "from onnxq.cli.app import run; import onnxq.cli; run(['--help'])",
    ],
)
def test_little_is_loaded_before_it_is_needed(code):
    probe = f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("name", onnxq.__all__)
def test_everything_promised_is_there(name):
    assert getattr(onnxq, name) is not None
    assert name in dir(onnxq)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'quantise'"):
        onnxq.quantise  # noqa: B018
