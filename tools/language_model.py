"""The language model of `samples/code_lm`, as the tools that fill the tables measure it."""

import math
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

import onnxq

SAMPLE = Path(__file__).parents[1] / "samples" / "code_lm"
MODEL, CALIBRATION, HELDOUT = SAMPLE / "model.onnx", SAMPLE / "calibration.npy", SAMPLE / "heldout.npy"
WINDOW = 256
# As accuracy level: onnxruntime's own low-bit kernels round no activations.
FLOAT_ACTIVATIONS = 1


def heldout(step: int = 1) -> np.ndarray:
    """Every n-th window of the held-out tokens, one behind the other."""
    tokens: np.ndarray = np.load(HELDOUT)
    return tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)[::step].ravel()


def nll(path: Path, tokens: np.ndarray, *, accuracy_level: int | None = FLOAT_ACTIVATIONS) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    return math.log(onnxq.evaluate(path, tokens=tokens, sequence=WINDOW, accuracy_level=accuracy_level).value)


def with_outliers(path: Path, *, spikes: bool) -> Path:
    """Write a model that computes the same, with outlier channels or with spikes in some tokens."""
    options = ["--spikes"] if spikes else []
    command = [sys.executable, str(SAMPLE / "outliers.py"), str(path), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def dated() -> dict[str, str]:
    """Today, and the versions of what the numbers hang on."""
    versions = {name: version(name) for name in ("onnxruntime", "numpy")}
    return {"date": datetime.now(UTC).date().isoformat()} | versions


def heading(about: dict[str, str]) -> str:
    """The same as the first line of what a tool prints."""
    date, *versions = about.items()
    return ", ".join([date[1], *(f"{name} {each}" for name, each in versions)])
