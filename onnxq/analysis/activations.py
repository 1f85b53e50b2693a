"""The activations that meet weights: their ranges, spikes and outlier channels on data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.analysis.weights import OUTLIER_RATIO
from onnxq.model.load import Model
from onnxq.model.sites import Weight
from onnxq.passes.calibrate import Reading, readings_of
from onnxq.statistics.cache import collected
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.requests import Request
from onnxq.statistics.statistics import Statistics

_QUANTILE = 0.999


@dataclass(frozen=True)
class ActivationRange:
    """One tensor.

    Attributes:
        tensor: Its name.
        weights: Names of the weights that it is multiplied with.
        labels: What people call these weights.
        low: The smallest value seen.
        high: The largest.
        spike: The largest magnitude over the 99.9th percentile of magnitudes; little more than 1 without spikes.
        channels: How many values of it meet one column of a weight.
        outlier_channels: Of those, how many are over `OUTLIER_RATIO` times as large as the median one.
        remedies: What stands out, and what would help.
    """

    tensor: str
    weights: tuple[str, ...]
    labels: tuple[str, ...]
    low: float
    high: float
    spike: float
    channels: int
    outlier_channels: int
    remedies: tuple[str, ...] = ()


def ranges_of(model: Model, weights: Sequence[Weight], calibration: Calibration) -> list[ActivationRange]:
    """Run a model on data and look at what is multiplied with its weights.

    Raises:
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
    """
    readers = readings_of(weights, model.ir.graph)
    requests: list[Request] = []
    for reading in readers:
        requests.append(reading.request("absmax", "min", "max", "histogram"))
        if reading.view.rank == 2:
            requests.append(reading.request("channel_absmax"))
    found = collected(model, requests, calibration)
    return [_range(reading, met, found) for reading, met in readers.items()]


def _range(reading: Reading, weights: Sequence[Weight], found: Statistics) -> ActivationRange:
    absmax = float(found.get(reading.tensor, "absmax"))
    outliers = 0
    if reading.view.rank == 2:
        channels = found.get(reading.tensor, "channel_absmax", reading.view)
        outliers = int(np.count_nonzero(channels > OUTLIER_RATIO * float(np.median(channels))))
    typical = _quantile(*found.histogram(reading.tensor))
    return ActivationRange(
        tensor=reading.tensor,
        weights=tuple(weight.name for weight in weights),
        labels=tuple(weight.label for weight in weights),
        low=float(found.get(reading.tensor, "min")),
        high=float(found.get(reading.tensor, "max")),
        spike=absmax / typical if typical else 1.0,
        channels=reading.channels,
        outlier_channels=outliers,
    )


def _quantile(counts: np.ndarray, edges: np.ndarray) -> float:
    """The magnitude below which 99.9 % of the values lie, as exactly as the bins tell."""
    magnitude = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(magnitude, kind="stable")
    share = np.cumsum(counts[order]) / max(float(counts.sum()), 1.0)
    return float(magnitude[order][min(int(np.searchsorted(share, _QUANTILE)), share.size - 1)])
