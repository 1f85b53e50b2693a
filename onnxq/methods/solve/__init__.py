"""From weights to codes and scales: one solver a file, all over the same grids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solution import Solution
from onnxq.methods.solve import clip, erq, gptq, hqq, kmeans, pb_llm, rtn


@dataclass(frozen=True)
class Solver:
    """A way from a weight to codes and scales.

    Attributes:
        solve: (weight [A, K, C], spec, curvature or None, array module) -> solution.
        hessian: Whether it needs X'X of the layer's inputs, uses it where there is one, or never looks at it.
        about: One line for people.
    """

    solve: Callable[[np.ndarray, GridSpec, Curvature | None, Any], Solution]
    hessian: Literal["needs", "uses", "no"]
    about: str


def _rtn(weight: np.ndarray, spec: GridSpec, _curvature: Curvature | None, _xp: Any) -> Solution:
    return rtn.solve(weight, spec)


def _clip(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    return clip.solve(weight, spec, curvature, xp=xp)


def _search(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    return clip.solve(weight, spec, curvature, clip.OCTAVES, xp=xp)


def _gptq(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    # Without statistics of its inputs (a convolution, an embedding) a weight is clipped and rounded.
    spec = kmeans.with_tables(weight, spec, curvature, xp=xp)
    return clip.solve(weight, spec, xp=xp) if curvature is None else gptq.solve(weight, spec, curvature, xp=xp)


def _kmeans(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    return kmeans.solve(weight, spec, curvature, xp=xp)


def _hqq(weight: np.ndarray, spec: GridSpec, _curvature: Curvature | None, _xp: Any) -> Solution:
    return hqq.solve(weight, spec)


def _erq(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    spec = kmeans.with_tables(weight, spec, curvature, xp=xp)
    return clip.solve(weight, spec, xp=xp) if curvature is None else erq.solve(weight, spec, curvature, xp=xp)


def _pb_llm(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Solution:
    return pb_llm.solve(weight, spec, curvature, xp=xp)


SOLVERS: Mapping[str, Solver] = {
    "rtn": Solver(_rtn, "no", "round to nearest, the scale from the largest magnitude"),
    "clip": Solver(_clip, "uses", "shrink each group's range to where its error is smallest, then round"),
    "search": Solver(_search, "uses", "LLM-FP4: format and exponent bias with the smallest error, then round"),
    "hqq": Solver(_hqq, "no", "HQQ: zero points that keep large errors few, then round; integers with zero points"),
    "kmeans": Solver(_kmeans, "uses", "learn the table of a codebook by k-means, then clip and round"),
    "gptq": Solver(_gptq, "needs", "GPTQ: round in turn, later channels make up for the error of earlier ones"),
    "erq": Solver(_erq, "needs", "ERQ: round half of what is left, flip, the other half makes up for the error"),
    "pb-llm": Solver(
        _pb_llm, "needs", "experimental; PB-LLM: a few weights in INT8, the others binary, rounded in turn"
    ),
}
