"""`Comparison`: what is found where two models run on the same data."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from onnxq.analysis.agreement import Agreement, SampleDifference
from onnxq.analysis.execution import Execution

# A quarter of the signal to noise ratio: one bit less.
JUMP_DB = 6.0


@dataclass(frozen=True)
class Difference:
    """One tensor, in model b as against model a.

    Attributes:
        name: the value's name in both models.
        operator: what computes it in model a.
        module: the path of the module that this belongs to, as the exporter noted it; empty if it did not.
        sqnr_db: signal to quantization noise, 10 log10(sum a² / sum (a-b)²); Inf where the two are equal.
        cosine: cosine of the angle between the two; 0 where one is all zero and the other is not.
        max_abs: the largest absolute difference.
        nonfinite: elements that are NaN or Inf in one model and something else in the other; they count nowhere else.
    """

    name: str
    operator: str
    module: str
    sqnr_db: float
    cosine: float
    max_abs: float
    nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no Inf: `sqnr_db` is null where there is no error or no signal."""
        finite = math.isfinite(self.sqnr_db)
        return {
            "name": self.name,
            "operator": self.operator,
            "module": self.module,
            "sqnr_db": self.sqnr_db if finite else None,
            "equal": self.sqnr_db == math.inf and not self.nonfinite,
            "cosine": self.cosine,
            "max_abs": self.max_abs,
            "nonfinite": self.nonfinite,
        }


@dataclass(frozen=True)
class Comparison:
    """Model b as against model a.

    Attributes:
        outputs: graph outputs that both have.
        layers: tensors that both compute under the same name, in the order model a computes them.
        skipped: tensors both have that could not be compared, with the reason.
        samples: samples or windows of tokens run.
        execution: how the weights of each ran.
        agreements: how often both decide alike, for each output that holds scores.
        worst_samples: the samples on which outputs differ most, the worst first.
    """

    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    skipped: dict[str, str]
    samples: int
    execution: tuple[Execution, Execution]
    agreements: tuple[Agreement, ...] = ()
    worst_samples: tuple[SampleDifference, ...] = ()

    def jump(self, least_db: float = JUMP_DB) -> tuple[Difference | None, Difference] | None:
        """The first layer where the error jumps, behind the one that was the worst until then.

        That is the first whose SQNR lies `least_db` or more under that of all layers before it, or that has NaN or Inf;
        None where the error only grows little by little.
        """
        lowest: Difference | None = None
        for layer in self.layers:
            if layer.nonfinite or (lowest is not None and layer.sqnr_db <= lowest.sqnr_db - least_db):
                return lowest, layer
            if not math.isinf(layer.sqnr_db) and (lowest is None or layer.sqnr_db < lowest.sqnr_db):
                lowest = layer
        return None

    def worst(self, count: int | None = None) -> list[Difference]:
        """Layers with the lowest SQNR first; those that turned NaN or Inf before all others."""
        return sorted(self.layers, key=lambda layer: (layer.nonfinite == 0, layer.sqnr_db))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "outputs": [each.to_dict() for each in self.outputs],
            "layers": [each.to_dict() for each in self.layers],
            "skipped": dict(self.skipped),
            "samples": self.samples,
            "execution": {"a": self.execution[0].to_dict(), "b": self.execution[1].to_dict()},
            "agreements": [asdict(each) for each in self.agreements],
            "worst_samples": [asdict(each) for each in self.worst_samples],
            "jump": None if (jump := self.jump()) is None else jump[1].name,
        }
