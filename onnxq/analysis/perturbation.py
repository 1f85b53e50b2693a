"""What each layer bears: noise of the same strength in its weight, or in its input, and nothing else changed."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.analysis.laboratory import Progress
from onnxq.analysis.swapping import Swapping
from onnxq.analysis.trial import Trial, trial
from onnxq.errors import UsageError, nearest
from onnxq.methods.noise import KINDS, Kind, noise
from onnxq.model.load import Model, load
from onnxq.model.named import Named
from onnxq.model.overrides import Addend
from onnxq.model.sites import Weight, find_weights
from onnxq.model.temporary import temporary_folder
from onnxq.passes.calibrate import reading_of
from onnxq.statistics.data import Source


@dataclass(frozen=True)
class Perturbation(Named):
    """One weight.

    Attributes:
        tensor: Its input, shared by all weights that read it; None where that is not a value of the main graph.
        weight_kl: KL of the predictions with noise in the weight, in nats.
        input_kl: KL of the predictions with noise in the input, for all weights that read it; None without a tensor.
    """

    tensor: str | None
    weight_kl: float
    input_kl: float | None


@dataclass(frozen=True)
class Perturbations:
    """What noise does, layer by layer.

    Attributes:
        sqnr_db: Power of each weight and each input over that of its noise.
        kind: Distribution of the noise.
        layers: In model order.
        loss: Of the model itself; NaN where no right answers are known.
        samples: Windows of tokens, or samples.
    """

    sqnr_db: float
    kind: Kind
    layers: tuple[Perturbation, ...]
    loss: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def perturb(
    model: Model | str | Path,
    data: Source,
    *,
    sqnr_db: float = 20.0,
    kind: Kind = "gaussian",
    seed: int = 0,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = 16,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Perturbations:
    """Add noise to one weight, then to one input of a layer at a time, and measure what that does to the predictions.

    The noise has the same power relative to what it is added to everywhere, so layers can be compared without any
    format. The model is loaded once.

    Args:
        model: A loaded model, or the path of one.
        data: What it is run on.
        sqnr_db: Strength; 20 dB is about what four bits leave.
        kind: Distribution (`onnxq.methods.noise.noise`).
        seed: Of the noise.
        sequence: Tokens in a window, where the data is a stream of tokens.
        batch: Windows or samples run at once.
        limit: Use only the first `limit` windows or samples; None uses all.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator.
        progress: Named after each variant.

    Raises:
        UsageError: There is no such kind of noise, or no such strength.
        DataError, NonFiniteError, SessionError: As `onnxq.sensitivity`.
    """
    if kind not in KINDS:
        raise UsageError(f"no noise '{kind}'; {nearest(kind, KINDS)}")
    if not math.isfinite(sqnr_db):
        raise UsageError(f"the strength of noise is a number in dB, such as 20, not {sqnr_db:g}")
    loaded = model if isinstance(model, Model) else load(model)
    weights = [weight for weight in find_weights(loaded.ir) if weight.obstacle is None and weight.size]
    inputs = _inputs(weights, loaded.ir.graph)
    rng = np.random.default_rng(seed)
    total = len(weights) + len(inputs)
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, name)

    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        swapping = Swapping(
            loaded,
            weights,
            stack,
            addends=list(inputs.values()),
            outputs=list(inputs),
            providers=providers,
            threads=threads,
        )
        judge = trial(swapping, data, folder, sequence=sequence, batch=batch, limit=limit)
        in_inputs = {}
        for tensor, addend in inputs.items():
            in_inputs[tensor] = _input_kl(judge, addend, kind, sqnr_db, rng)
            advance(tensor)
        layers = []
        for weight in weights:
            numbers = weight.read().astype(np.float32)
            found = judge.judge([(weight, numbers + noise(numbers, kind, sqnr_db, rng))])
            reading = reading_of(weight, loaded.ir.graph)
            read = reading.tensor if reading else None
            layers.append(
                Perturbation(
                    weight=weight.name,
                    label=weight.label,
                    op=weight.op,
                    readers=tuple(site.node.name or "" for site in weight.sites),
                    tensor=read,
                    weight_kl=found.kl,
                    input_kl=None if read is None else in_inputs[read],
                )
            )
            advance(weight.name)
        return Perturbations(sqnr_db, kind, tuple(layers), judge.loss, judge.samples)


def _inputs(weights: Sequence[Weight], graph: ir.Graph) -> dict[str, Addend]:
    """What is added to the input of each layer, where the operators read it that have a weight."""
    readers: dict[tuple[str, ir.DataType], list[tuple[str, int]]] = {}
    for weight in weights:
        if (reading := reading_of(weight, graph)) is not None:
            found = readers.setdefault((reading.tensor, weight.dtype), [])
            for site in weight.sites:
                value = site.node.inputs[1 - site.index]
                if site.node.graph is graph and value is not None and value.name == reading.tensor:
                    found.append((str(site.node.outputs[0].name), 1 - site.index))
    return {tensor: Addend(tensor, dtype, tuple(places)) for (tensor, dtype), places in readers.items()}


def _input_kl(judge: Trial, addend: Addend, kind: Kind, sqnr_db: float, rng: np.random.Generator) -> float:
    made = []
    for values in judge.values(addend.value):
        added = noise(values.astype(np.float32), kind, sqnr_db, rng)
        made.append({addend.name: added.astype(values.dtype)})
    return judge.judge(addends=made).kl
