"""Which configuration serves a product: the one measured fastest on the nearest shape."""

import json
from dataclasses import dataclass, replace
from functools import cache
from math import log
from pathlib import Path

from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Configuration, Operand, Stream, Tile

TABLE = Path(__file__).with_name("table.json")
_LARGE = 512  # from here on a configuration serves more rows as well
_KERNELS: dict[str, type[Stream] | type[Tile]] = {"matmul_stream": Stream, "matmul_tile": Tile}


@dataclass(frozen=True)
class Measured:
    """One line of the table: the fastest configuration for a product, and its time in microseconds."""

    fmt: str
    N: int
    K: int
    M: int
    us: float
    configuration: Configuration


@cache
def measured() -> tuple[Measured, ...]:
    """The table that tools/make_kernel_table.py wrote."""
    lines = json.loads(TABLE.read_text(encoding="utf-8"))["lines"]
    return tuple(
        Measured(
            **{name: line[name] for name in ("fmt", "N", "K", "M", "us")},
            configuration=_KERNELS[line["kernel"]](**line["numbers"]),
        )
        for line in lines
    )


@cache
def choose(operand: Operand, M: int, N: int, K: int) -> Configuration:
    """The configuration for y[M, N] = x[M, K] @ W; every shape that the kernels take has one.

    A format without lines of its own takes those of the other format of its width. Four-bit lines were measured with
    scales for groups of 128, six-bit ones with a scale a column. A six-bit weight with groups takes its large products
    from four-bit lines, whose accumulators leave room for the sums of groups.
    """
    rows = sorted({line.M for line in measured()})
    limit = next((m for m in rows if m >= M), rows[-1])
    below = max((m for m in rows if m < limit), default=limit)
    if below >= _LARGE and limit * below > M**2:  # of two large ones the nearer
        limit = below
    fours = operand.unit_bytes == 1024 or (operand.group > 0 and limit > 32)
    others = "fp4_e2m1" if fours else "fp6_e3m2"
    at = [line for line in measured() if limit == line.M]
    own = [line for line in at if line.fmt == operand.fmt and (operand.unit_bytes == 1024 or not fours)]
    lines = own or [line for line in at if line.fmt == others]
    best = min(lines, key=lambda line: abs(log(N / line.N)) + abs(log(K / line.K)))
    return fitted(operand, best.configuration)


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
