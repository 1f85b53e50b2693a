"""Which configuration serves a product: the one measured fastest on the nearest shape."""

import json
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isqrt, log
from pathlib import Path

from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Configuration, Operand, Stream, Tile

TABLE = Path(__file__).with_name("table.json")
MAX_ROWS = 2**31 - 1
_FEW = 32  # up to here sums of groups find room in any configuration
_LARGE = 512  # from here on a configuration serves more rows as well
# As far apart as a product and one of twice its size: two formats, two widths, and groups of scales of two kinds.
_APART = log(2)
_KERNELS: dict[str, type[Stream] | type[Tile]] = {"matmul_stream": Stream, "matmul_tile": Tile}


@dataclass(frozen=True)
class Measured:
    """One line of the table: the fastest configuration for a product, and its time in microseconds."""

    fmt: str
    group: int
    N: int
    K: int
    M: int
    us: float
    configuration: Configuration

    @property
    def unit_bytes(self) -> int:
        """Bytes of 16 x 128 packed weights."""
        return Operand(self.fmt).unit_bytes


@cache
def measured() -> tuple[Measured, ...]:
    """The table that tools/make_kernel_table.py wrote."""
    lines = json.loads(TABLE.read_text(encoding="utf-8"))["lines"]
    return tuple(
        Measured(
            **{name: line[name] for name in ("fmt", "group", "N", "K", "M", "us")},
            configuration=_KERNELS[line["kernel"]](**line["numbers"]),
        )
        for line in lines
    )


@cache
def plan(operand: Operand, N: int, K: int) -> tuple[tuple[int, Configuration], ...]:
    """Configurations for x @ W, each with the most rows of x that it serves, by growing rows; the last serves any.

    Every shape that the kernels take has a plan: that of the nearest product of its width, by shape, format and groups
    of scales. Large products of weights with groups need room for the sums of groups: only lines of such weights serve,
    for six bits those of four as well. float32 results are never made of weights that were rounded after scaling
    (`fold`): then a configuration for fewer rows serves.
    """
    rows = sorted({line.M for line in measured()})
    exact = [line for line in measured() if serves(line.configuration, operand)]
    made: list[tuple[int, Configuration]] = []
    for M, following in zip(rows, [*rows[1:], MAX_ROWS], strict=True):
        with_sums = operand.group > 0 and M > _FEW
        others = "fp4_e2m1" if with_sums or operand.unit_bytes == 1024 else "fp6_e3m2"
        most_rows = max(line.M for line in exact if line.M <= M and line.fmt == others)
        lines = [line for line in exact if most_rows == line.M and _lends(line, operand, with_sums=with_sums)]
        best = min(lines, key=partial(_distance, operand, N, K))
        # Of two large numbers of rows the nearer decides.
        most = MAX_ROWS if rows[-1] == M else M if M < _LARGE else isqrt(M * following)
        made.append((most, fitted(operand, best.configuration)))
    return tuple(made)


def serves(configuration: Configuration, operand: Operand) -> bool:
    """Whether a configuration computes such products: with a gate, blocks have an even number of strips."""
    folds = isinstance(configuration, Tile) and configuration.fold
    return not (operand.dtype == "float32" and folds) and not (operand.gates_itself and configuration.rows % 32)


def _lends(line: Measured, operand: Operand, *, with_sums: bool) -> bool:
    """Whether a line of the table may serve such products."""
    if with_sums:
        return line.group > 0 and line.unit_bytes <= operand.unit_bytes
    return line.unit_bytes == operand.unit_bytes


def _distance(operand: Operand, N: int, K: int, line: Measured) -> tuple[float, float]:
    """How far a line of the table is from a product; and of two as far, how far its shape is."""
    formats = (line.fmt != operand.fmt) + (line.unit_bytes != operand.unit_bytes)
    groups = abs(_often(line.group) - _often(operand.group))
    size = abs(log(N / line.N)) + abs(log(K / line.K))
    return size + _APART * (formats + groups), size


def _often(group: int) -> int:
    """How often scales change: never (0), behind whole units of 128 rows of K (1), or within one (2)."""
    return 0 if group == 0 else 1 if group >= 128 else 2


def choose(operand: Operand, M: int, N: int, K: int) -> Configuration:
    """The configuration for y[M, N] = x[M, K] @ W."""
    return next(configuration for most, configuration in plan(operand, N, K) if most >= M)


def fitted(operand: Operand, configuration: Configuration) -> Configuration:
    """The same with so few stages that they fit, and with steps that end where groups of scales end."""
    if isinstance(configuration, Tile):
        if operand.group and not configuration.fold:
            configuration = replace(configuration, steps=min(configuration.steps, max(1, operand.group // 16)))
        limit = SHARED_BYTES_LIMIT // configuration.resident - 1024 * (configuration.resident > 1)
    else:
        limit = SHARED_BYTES_LIMIT
    while configuration.shared_bytes(operand) > limit and configuration.stages > 2:
        configuration = replace(configuration, stages=configuration.stages - 1)
    return configuration
