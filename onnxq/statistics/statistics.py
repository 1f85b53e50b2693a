"""`Statistics`: what calibration found, by tensor."""

from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import DataError, nearest
from onnxq.statistics.reductions import Kind


@dataclass(frozen=True)
class Statistics:
    """Answers about activations.

    Attributes:
        answers: float64 arrays by tensor and kind: `hessian` [K, K], the others [K].
        rows: How many rows of each tensor were seen.
        samples: How many samples the model ran on.
    """

    answers: dict[tuple[str, Kind], np.ndarray] = field(repr=False)
    rows: dict[str, int] = field(repr=False)
    samples: int = 0

    def get(self, tensor: str, kind: Kind) -> np.ndarray:
        """One answer.

        Raises:
            DataError: It was not asked for.
        """
        if (tensor, kind) not in self.answers:
            known = sorted({name for name, each in self.answers if each == kind})
            raise DataError(f"no {kind} of '{tensor}' among the statistics; {nearest(tensor, known)}")
        return self.answers[tensor, kind]
