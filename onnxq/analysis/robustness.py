"""How a classifier bears noise and attacks, next to what it does on clean inputs.

"Investigating the Impact of Quantization on Adversarial Robustness" (arXiv 2404.05639) shows that robustness before and
after quantization has to be measured with one and the same procedure. Here attacks are made on one model, usually the
float one, and shown to others. Gradients come from forward runs alone, so any ONNX model can be attacked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.analysis.divergence import are_probabilities, log_probabilities
from onnxq.analysis.scores import scores_output
from onnxq.errors import DataError, UsageError, number_of
from onnxq.model.load import Model
from onnxq.runtime.inputs import inputs_of
from onnxq.runtime.session import run, session
from onnxq.runtime.source import checked
from onnxq.statistics.data import Source, read
from onnxq.statistics.feeds import LABELS, array_feeds

if TYPE_CHECKING:
    import onnxruntime

Progress = Callable[[int, int], None]
"""(samples attacked, samples in all)"""
Scores = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""[samples, ...] inputs -> [samples, classes] scores"""

# Of the range of the inputs: far enough that float32 tells the scores apart.
_STEP = 1e-2
_BATCH = 256


@dataclass(frozen=True)
class Robustness:
    """Accuracies of one model.

    Attributes:
        clean: On the inputs as they are.
        noise: With random signs times the strength added.
        attacked: With the strength added along the signs of the gradient (FGSM).
        strength: Largest change of an element.
        samples: How many.
        exact: The gradient was taken along every element; False: estimated along random directions.
    """

    clean: float
    noise: float
    attacked: float
    strength: float
    samples: int
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Attack:
    """Inputs to show to any number of models that take the same.

    Attributes:
        clean: [samples, ...] float32.
        noise: The same with noise.
        attacked: The same, changed against the model that was attacked.
        labels: [samples] class numbers.
        strength: Largest change of an element.
        exact: As `Robustness`.
    """

    clean: NDArray[np.float32]
    noise: NDArray[np.float32]
    attacked: NDArray[np.float32]
    labels: NDArray[np.int64]
    strength: float
    exact: bool


def attack(
    model: Model | str | Path,
    data: Source,
    *,
    strength: float = 0.1,
    queries: int = 1024,
    limit: int | None = None,
    seed: int = 0,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Attack:
    """Make inputs that a classifier gets wrong, by one step along the signs of the gradient of its loss.

    Gradients are central differences along every element of an input where two runs for each element are within the
    queries; else an estimate from random directions (NES), which is a weaker attack.

    Args:
        model: A loaded model, or the path of one, with one float input.
        data: Its input, and `labels`.
        strength: Largest change of an element, as a share of the range of the inputs; results stay in that range.
        queries: Runs for each sample, at most.
        limit: Use only the first `limit` samples.
        seed: Of the noise, and of random directions.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator.
        progress: Called with samples attacked and samples to attack.

    Raises:
        UsageError: The strength is not positive, or there are fewer than two queries.
        DataError: The model has several inputs, or the data does not fit it.
        SessionError: Onnxruntime cannot load or run the model.
    """
    if not 0 < strength < math.inf or queries < 2:
        raise UsageError(f"an attack needs a positive strength and 2 queries at least, not {strength:g} and {queries}")
    _, opening = checked(model)
    with opening as source:
        score, name = _scorer(session(source, providers=providers, threads=threads))
        clean, labels = _labelled(data, name, limit)
        low, high = float(clean.min(initial=0.0)), float(clean.max(initial=0.0))
        rng, size = np.random.default_rng(seed), (high - low) * strength
        elements = clean[0].size
        exact = 2 * elements <= queries
        signs = np.empty_like(clean)
        for at, (sample, label) in enumerate(zip(clean, labels, strict=True)):
            directions = (
                np.eye(elements, dtype=np.float32)
                if exact
                else rng.standard_normal((queries // 2, elements), np.float32) / np.float32(elements**0.5)
            )
            steps = (directions * np.float32(_STEP * (high - low))).reshape(-1, *sample.shape)
            losses = _margins(score(np.concatenate((sample + steps, sample - steps))), int(label))
            slopes = losses[: len(steps)] - losses[len(steps) :]
            signs[at] = np.sign((slopes @ directions).reshape(sample.shape))
            if progress is not None:
                progress(at + 1, len(clean))
        noise = rng.choice(np.array([-1, 1], np.float32), clean.shape)
        noisy, attacked = (np.clip(clean + np.float32(size) * each, low, high) for each in (noise, signs))
    return Attack(clean, noisy, attacked, labels, size, exact)


def robustness(
    model: Model | str | Path,
    made: Attack,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
) -> Robustness:
    """Accuracies of a classifier on clean, noisy and attacked inputs.

    Args:
        model: A loaded model, or the path of one.
        made: From `attack`, on this model or on another that takes the same inputs.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator.
        accuracy_level: As for `onnxq.session`.

    Raises:
        DataError: The inputs do not fit the model.
        SessionError: Onnxruntime cannot load or run the model.
    """
    _, opening = checked(model)
    with opening as source:
        score, _ = _scorer(session(source, providers=providers, threads=threads, accuracy_level=accuracy_level))
        found = [
            float((score(inputs).argmax(axis=1) == made.labels).mean())
            for inputs in (made.clean, made.noise, made.attacked)
        ]
    return Robustness(
        clean=found[0],
        noise=found[1],
        attacked=found[2],
        strength=made.strength,
        samples=len(made.labels),
        exact=made.exact,
    )


def _scorer(opened: "onnxruntime.InferenceSession") -> tuple[Scores, str]:
    """Scores of any number of samples, and the name of the input."""
    inputs, output = inputs_of(opened), scores_output(opened.get_outputs(), (2,)).name
    if len(inputs) != 1 or inputs[0].dtype.kind != "f":
        listed = ", ".join(str(each) for each in inputs)
        raise DataError(f"only a model with one float input can be attacked; this one takes {listed}")

    def score(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        feeds = array_feeds({inputs[0].name: samples}, inputs, batch=_BATCH)
        return np.concatenate([run(opened, [output], feed.inputs)[0][: feed.rows].astype(np.float32) for feed in feeds])

    return score, inputs[0].name


def _margins(scores: NDArray[np.float32], label: int) -> NDArray[np.float32]:
    """Log of the odds against a class, [samples]: it rises with the loss, and float32 tells it where the loss is 0.

    Raises:
        DataError: The model has no such class.
    """
    if not 0 <= label < scores.shape[1]:
        raise DataError(f"the data has label {label}, the model has {scores.shape[1]} classes")
    logs = log_probabilities(scores, probabilities=are_probabilities(scores))
    others = np.delete(logs, label, axis=1)
    highest = others.max(axis=1)
    margins: NDArray[np.float32] = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1)) - logs[:, label]
    return margins


def _labelled(data: Source, name: str, limit: int | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    arrays = read(data)
    if not isinstance(arrays, dict) or name not in arrays or LABELS not in arrays:
        raise DataError(f"an attack needs named arrays, '{name}' and '{LABELS}'")
    clean, labels = arrays[name][:limit], arrays[LABELS].reshape(-1)[:limit]
    if len(clean) != len(labels) or not len(clean):
        raise DataError(f"the data has {number_of(len(clean), 'sample')} and {number_of(len(labels), 'label')}")
    return clean.astype(np.float32), labels.astype(np.int64)
