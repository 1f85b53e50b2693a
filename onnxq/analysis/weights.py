"""A float weight: its range and tails, and how well each format would fit it."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxq.errors import NonFiniteError
from onnxq.methods.solve import rtn
from onnxq.model.sites import Weight
from onnxq.passes.form import grid_spec, grouping
from onnxq.recipes import QuantSpec, load_recipe

# Recipes whose fit is measured; each is one quantization people would choose for a whole model.
RECIPES = ("fp6-e2m3", "fp6-e3m2", "mxfp6", "fp4", "mxfp4", "nvfp4", "int8", "int4", "int3", "int2")
FORMATS = ("fp6_e2m3", "fp6_e3m2", "fp4_e2m1", "int8", "int4")
GRANULARITIES = {
    "tensor": QuantSpec(format=("int8",), granularity="tensor"),
    "channel": QuantSpec(format=("int8",)),
    "groups of 128": QuantSpec(format=("int8",), granularity="group", group_size=128),
    "groups of 32": QuantSpec(format=("int8",), granularity="group", group_size=32),
}
# Elements that are rounded to tell formats apart, but at least so many columns.
_SAMPLED_ELEMENTS, _SAMPLED_COLUMNS = 1 << 16, 32
# Elements that are looked at in one go.
_CHUNK_ELEMENTS = 1 << 20
# Stands for infinity where nothing is lost: more than float32 can tell.
_LOSSLESS_DB = 200.0
# Channels this much larger than the median one are outliers (LLM.int8(), arXiv 2208.07339, takes a like magnitude).
OUTLIER_RATIO = 6.0


@dataclass(frozen=True)
class Spread:
    """How the values of a weight [A, K, C] lie, all of them counted.

    Attributes:
        low: The smallest value.
        high: The largest.
        kurtosis: Heaviness of the tails: 3 for Gaussian weights, more for outliers.
        channel_precision: Mean range of an output channel over the range of all (arXiv 2011.14578): near 1 they share a
            scale well, near 0 most of them would use a small part of it.
        channels: Output channels.
        inputs: K, what an output channel sums over.
        outlier_inputs: Of those, how many are over `OUTLIER_RATIO` times as large as the median one.
    """

    low: float
    high: float
    kurtosis: float
    channel_precision: float
    channels: int
    inputs: int
    outlier_inputs: int

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class WeightFit:
    """One weight.

    Attributes:
        name: Of the constant.
        label: What people call it: the path of the module that reads it, where the exporter noted it, or the name.
        op: Type of the operator that reads it.
        role: What it is for.
        shape: As the operator reads it.
        dtype: As it is stored.
        size_bytes: As it is stored.
        obstacle: Why it cannot be quantized, or None.
        spread: How its values lie; None where there is an obstacle, or nothing was measured.
        sqnr_db: For each recipe the signal to quantization noise that rounding to nearest leaves, in dB; of a large
            weight an estimate from a part of its output channels.
        granularity_db: Likewise for each format with the granularities it can have.
        remedies: What stands out, and what would help.
    """

    name: str
    label: str
    op: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    obstacle: str | None
    spread: Spread | None = None
    sqnr_db: dict[str, float] = field(default_factory=dict)
    granularity_db: dict[str, dict[str, float]] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | ({"absmax": self.spread.absmax} if self.spread else {})


def fit_of(weight: Weight, *, measure: bool = True) -> WeightFit:
    """Look at one weight; with `measure`, read it."""
    plain = WeightFit(
        name=weight.name,
        label=weight.label,
        op=weight.op,
        role=weight.role,
        shape=weight.shape,
        dtype=str(weight.tensor.dtype),
        size_bytes=weight.size_bytes,
        obstacle=weight.obstacle,
    )
    if weight.obstacle is not None or weight.size == 0 or not measure:
        return plain
    specs = {name: spec for name in RECIPES if (spec := load_recipe(name).rules[0].weight) is not None}
    matrix = weight.read().reshape(grouping(weight, specs["int8"]).matrix)
    try:
        columns, spread = _survey(matrix)
    except NonFiniteError as error:
        return replace(plain, obstacle=f"{error}")
    sample = _Sample.of(matrix, columns)
    by_granularity = {
        kind: {
            name: sample.sqnr_db(weight, spec.model_copy(update={"format": (kind,)}))
            for name, spec in GRANULARITIES.items()
            if spec.group_size is None or spec.group_size < matrix.shape[1]
        }
        for kind in FORMATS
    }
    by_recipe = {name: sample.sqnr_db(weight, spec) for name, spec in specs.items()}
    return replace(plain, spread=spread, sqnr_db=by_recipe, granularity_db=by_granularity)


@dataclass(frozen=True)
class _Columns:
    """Of each output channel (a, c) of a weight [A, K, C], row-major: sum of squares and largest magnitude."""

    energy: np.ndarray
    absmax: np.ndarray


@dataclass(frozen=True)
class _Sample:
    """Output channels that stand for all.

    Attributes:
        values: float32 [1, K, n].
        certain: How many of them, the first, stand for themselves alone: the largest ones.
        energy: Sum of squares of the channels that the others stand for.
        count: Number of these.
        signal: Sum of squares of the whole weight.
    """

    values: np.ndarray
    certain: int
    energy: float
    count: int
    signal: float

    @classmethod
    def of(cls, matrix: np.ndarray, columns: _Columns) -> "_Sample":
        """The channels with the largest magnitudes, which decide about the noise, and some of the rest."""
        _, k, c = matrix.shape
        total = columns.energy.size
        wanted = max(_SAMPLED_COLUMNS, _SAMPLED_ELEMENTS // max(k, 1))
        order = np.argsort(-columns.absmax, kind="stable")
        certain = total if total <= wanted else wanted // 4
        rest = order[certain:]
        picked = rest[np.linspace(0, rest.size - 1, wanted - certain).astype(np.intp)] if rest.size else rest
        chosen = np.concatenate([order[:certain], picked])
        values = matrix[chosen // c, :, chosen % c].astype(np.float32).T[None]
        energy = columns.energy
        return cls(np.ascontiguousarray(values), certain, float(energy[rest].sum()), rest.size, float(energy.sum()))

    def sqnr_db(self, weight: Weight, spec: QuantSpec) -> float:
        """What rounding the whole weight to nearest leaves."""
        grid = grid_spec(weight, spec)
        error = rtn.solve(self.values, grid).decode() - self.values
        noise = np.square(error, dtype=np.float64).sum(axis=(0, 1))
        total = float(noise[: self.certain].sum())
        if self.count:
            rest = self.values[:, :, self.certain :]
            # With a scale of its own a channel has noise in proportion to its power; one scale gives all the same.
            power = float(np.square(rest, dtype=np.float64).sum())
            of_all = self.count / rest.shape[2] if grid.block is None or not power else self.energy / power
            total += float(noise[self.certain :].sum()) * of_all
        if not total or not self.signal:
            return _LOSSLESS_DB
        return min(10 * math.log10(self.signal / total), _LOSSLESS_DB)


def _survey(matrix: np.ndarray) -> tuple[_Columns, Spread]:
    """Go through a weight [A, K, C] once.

    Raises:
        NonFiniteError: A value is NaN or Inf.
    """
    a, k, c = matrix.shape
    low, high = np.full((a, c), np.inf, np.float32), np.full((a, c), -np.inf, np.float32)
    energy, inputs = np.zeros((a, c)), np.zeros(k, np.float32)
    # Sums of the first to the fourth power.
    moments = np.zeros(4)
    for top, rows, part in _parts(matrix):
        low[top] = np.minimum(low[top], part.min(axis=1))
        high[top] = np.maximum(high[top], part.max(axis=1))
        inputs[rows] = np.maximum(inputs[rows], np.abs(part).max(axis=(0, 2)))
        square = np.square(part, dtype=np.float64)
        energy[top] += square.sum(axis=1)
        # Refused below.
        with np.errstate(invalid="ignore"):
            moments += (part.sum(dtype=np.float64), square.sum(), (square * part).sum(), (square * square).sum())
    if not (np.isfinite(low).all() and np.isfinite(high).all() and np.isfinite(energy).all()):
        bad = int(np.count_nonzero(~np.isfinite(matrix.astype(np.float32, copy=False))))
        raise NonFiniteError(f"{bad} NaN or Inf values")
    smallest, largest = float(low.min()), float(high.max())
    spread = Spread(
        low=smallest,
        high=largest,
        kurtosis=_kurtosis(*(moments / matrix.size).tolist()),
        channel_precision=float((high - low).mean(dtype=np.float64)) / (largest - smallest or 1.0),
        channels=a * c,
        inputs=k,
        outlier_inputs=int(np.count_nonzero(inputs > OUTLIER_RATIO * float(np.median(inputs.astype(np.float64))))),
    )
    return _Columns(energy.reshape(-1), np.maximum(-low, high).reshape(-1)), spread


def _parts(matrix: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Pieces of a weight as float32, with the matrices and the rows they are."""
    a, k, c = matrix.shape
    many = max(1, _CHUNK_ELEMENTS // (k * c))
    step = max(1, _CHUNK_ELEMENTS // c)
    for start in range(0, a, many):
        for begin in range(0, k, step):
            top, rows = slice(start, start + many), slice(begin, begin + step)
            yield top, rows, matrix[top, rows].astype(np.float32, copy=False)


def _kurtosis(first: float, second: float, third: float, fourth: float) -> float:
    """From raw moments; 0 for a constant."""
    variance = second - first**2
    if variance <= 1e-12 * second:
        return 0.0
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return central / variance**2
