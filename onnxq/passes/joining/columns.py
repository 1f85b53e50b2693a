"""Columns of several weights side by side, in codes, scales, zero points and biases."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[np.generic]]


def side_by_side(arrays: Arrays, *, axis: int, strip: int, in_turn: bool) -> NDArray[np.generic]:
    """Weights joined along their columns.

    Args:
        arrays: Alike but for `axis`.
        axis: Along which columns lie.
        strip: Entries of that axis that make up 16 columns.
        in_turn: A strip of each after the other, instead of all of one behind all of the other; all are alike.
    """
    if not in_turn:
        return np.concatenate(arrays, axis)
    before, after = arrays[0].shape[:axis], arrays[0].shape[axis + 1 :]
    strips = [each.reshape(*before, -1, strip, *after) for each in arrays]
    return np.stack(strips, axis + 1).reshape(*before, -1, *after)
