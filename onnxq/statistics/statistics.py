"""`Statistics`: what calibration found, by tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import DataError, nearest
from onnxq.statistics.reductions import BINS, REDUCTIONS, Kind
from onnxq.statistics.requests import Key, Request, merged
from onnxq.statistics.views import ALL, LAST, View


@dataclass(frozen=True)
class Statistics:
    """Answers about activations.

    Attributes:
        answers: float64: `hessian` [K, K] or [groups, K, K], `cross` [K, K of the other], `channel_...` [K],
            `histogram` [BINS], those about whole tensors and `rows` scalars.
        samples: How many samples the model ran on.
        synthetic: The data was made up.
    """

    answers: Mapping[Key, np.ndarray] = field(repr=False)
    samples: int = 0
    synthetic: bool = False

    def get(self, tensor: str, kind: Kind, view: View = LAST, *, other: str = "") -> np.ndarray:
        """One answer; of whole tensors the view does not matter.

        Raises:
            DataError: It was not asked for.
        """
        view = ALL if kind != "rows" and REDUCTIONS[kind].whole else view
        key = Key(tensor, kind, view.label, other)
        if key not in self.answers:
            known = sorted({each.tensor for each in self.answers if (each.kind, each.view) == (kind, view.label)})
            raise DataError(f"no {kind} of '{tensor}' ({view.label}) among the statistics; {nearest(tensor, known)}")
        return self.answers[key]

    def rows(self, tensor: str, view: View = LAST, *, other: str = "") -> int:
        """How many rows of a tensor were seen."""
        return round(float(self.get(tensor, "rows", view, other=other)))

    def channel_mean(self, tensor: str, view: View = LAST) -> np.ndarray:
        """Mean of each channel, [K]; needs `channel_sum`."""
        return self.get(tensor, "channel_sum", view) / max(self.rows(tensor, view), 1)

    def mean(self, tensor: str) -> float:
        """Mean of a whole tensor; needs `sum`."""
        return float(self.get(tensor, "sum")) / max(self.rows(tensor, ALL), 1)

    def histogram(self, tensor: str) -> tuple[np.ndarray, np.ndarray]:
        """Counts [BINS] and the edges of the bins [BINS + 1], from the smallest to the largest value."""
        low, high = float(self.get(tensor, "min")), float(self.get(tensor, "max"))
        return self.get(tensor, "histogram"), np.linspace(low, high, BINS + 1)

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """Requests that are not answered in full.

        Raises:
            DataError: An answer has another shape than was asked for.
        """
        found = []
        for request in merged(requests):
            expected = request.keys
            for key in expected.keys() & self.answers.keys():
                if self.answers[key].shape != expected[key]:
                    shapes = f"{list(self.answers[key].shape)}, not {list(expected[key])}"
                    raise DataError(f"the {key.kind} of '{key.tensor}' among the statistics has shape {shapes}")
            if not expected.keys() <= self.answers.keys():
                found.append(request)
        return found

    def joined(self, other: "Statistics") -> "Statistics":
        """The answers of both; they are about the same model and data."""
        return Statistics({**self.answers, **other.answers}, self.samples, self.synthetic)
