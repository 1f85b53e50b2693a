"""`Curvatures`: the curvature that each weight is solved with, shared by weights that read one tensor."""

import threading
from collections import OrderedDict

import numpy as np

from onnxq.methods.correct import aqer
from onnxq.methods.curvature import Curvature
from onnxq.passes.calibrate import Reading, float_name
from onnxq.statistics.requests import Key
from onnxq.statistics.statistics import Statistics

# Weights of one tensor stand together in most models; each curvature holds a few times the bytes of its K x K matrix.
_KEPT = 4


class Curvatures:
    """Curvatures made from statistics when they are asked for; safe to use from several threads."""

    def __init__(self, statistics: Statistics | None) -> None:
        """`statistics` holds the `hessian` of every reading that is asked for; None where there are none."""
        self._statistics = statistics
        self._kept: OrderedDict[tuple[Reading, bool], Curvature] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, reading: Reading | None, *, centred: bool = False) -> Curvature | None:
        """The curvature of what a weight is multiplied with, or None where nothing is known about it.

        Args:
            reading: What it is multiplied with.
            centred: About its mean: a bias gives back what an error of the weight makes of the mean.
        """
        if self._statistics is None or reading is None or reading.view.groups != 1:
            return None
        with self._lock:
            if (reading, centred) not in self._kept:
                self._kept[reading, centred] = self._made(self._statistics, reading, centred=centred)
            self._kept.move_to_end((reading, centred))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[reading, centred]

    def _made(self, statistics: Statistics, reading: Reading, *, centred: bool) -> Curvature:
        tensor, view = reading.tensor, reading.view
        h, other = statistics.get(tensor, "hessian", view), float_name(tensor)
        cross = statistics.answers.get(Key(tensor, "cross", view.label, other))
        if centred:
            own, rows = statistics.get(tensor, "channel_sum", view), max(statistics.rows(tensor, view), 1)
            h = h - np.outer(own, own) / rows
            if cross is not None:
                cross = cross - np.outer(own, statistics.get(other, "channel_sum", view)) / rows
        return Curvature(h, None if cross is None else aqer.correction(h, cross))
