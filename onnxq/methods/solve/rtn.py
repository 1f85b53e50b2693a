"""Round to nearest: a scale from the largest magnitude of each group, then the nearest code of each weight."""

import numpy as np

from onnxq.methods.chunks import chunks
from onnxq.methods.grid import Grid, GridSpec, extremes, lay, square
from onnxq.methods.solution import Solution

# Chunks that decide between candidate formats.
_SAMPLED_CHUNKS = 16


def solve(weight: np.ndarray, spec: GridSpec) -> Solution:
    """Quantize one weight by rounding to nearest.

    Args:
        weight: [A, K, C], any float type, finite; may be a view of a file.
        spec: Of several formats the one with the smallest squared error is taken; on weights of more than a million
            elements the error that decides is that of evenly spaced parts.

    Raises:
        NonFiniteError: A weight is NaN or Inf.
    """
    low, high = extremes(weight, spec.block)
    grids = [lay(kind, low, high, spec) for kind in spec.formats]
    errors = [_sampled_error(weight, grid) for grid in grids] if len(grids) > 1 else [0.0]
    return round_to(weight, grids[int(np.argmin(errors))])


def round_to(weight: np.ndarray, grid: Grid) -> Solution:
    """Give each weight the nearest value of a grid."""
    codes = np.empty(weight.shape, np.uint8)
    squared_error = squared_norm = 0.0
    for chunk in chunks(weight.shape, grid.block):
        exact = chunk.of(weight).astype(np.float32, copy=False)
        chosen, error = grid.quantize_chunk(exact, chunk)
        codes[chunk.part] = chosen.reshape(codes[chunk.part].shape)
        squared_error += error
        squared_norm += square(exact)
    return grid.solution(codes, squared_error, squared_norm)


def _sampled_error(weight: np.ndarray, grid: Grid) -> float:
    """Squared error of a grid on evenly spaced chunks; on all of them where the weight has few."""
    every = list(chunks(weight.shape, grid.block))
    sampled = every[:: -(-len(every) // _SAMPLED_CHUNKS)]
    return sum(grid.quantize_chunk(chunk.of(weight).astype(np.float32, copy=False), chunk)[1] for chunk in sampled)
