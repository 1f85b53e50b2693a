"""Channels that must share a scale: values of attention heads that several queries read, for instance."""

from typing import Protocol

import numpy as np


class Reduce(Protocol):
    """A numpy function of two arguments, such as `np.maximum`."""

    def at(self, array: np.ndarray, indices: np.ndarray, values: np.ndarray, /) -> None:
        """See `numpy.ufunc.at`."""


def tied(values: np.ndarray, classes: np.ndarray, reduce: Reduce = np.maximum) -> np.ndarray:
    """Give all channels of a class the same number.

    Args:
        values: [K].
        classes: [K] the class of each channel: the number of one of its channels.
        reduce: What becomes of the numbers of a class.
    """
    found = values.astype(np.float64)
    members = classes != np.arange(len(classes))
    reduce.at(found, classes[members], found[members])
    shared: np.ndarray = found[classes]
    return shared
