"""`Curvatures`: the curvature that each weight is solved with, shared by weights that read one tensor."""

import threading
from collections import OrderedDict

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
        self._kept: OrderedDict[Reading, Curvature] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, reading: Reading | None) -> Curvature | None:
        """The curvature of what a weight is multiplied with, or None where nothing is known about it."""
        if self._statistics is None or reading is None or reading.view.groups != 1:
            return None
        with self._lock:
            if reading not in self._kept:
                self._kept[reading] = self._made(self._statistics, reading)
            self._kept.move_to_end(reading)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[reading]

    def _made(self, statistics: Statistics, reading: Reading) -> Curvature:
        h = statistics.get(reading.tensor, "hessian", reading.view)
        key = Key(reading.tensor, "cross", reading.view.label, float_name(reading.tensor))
        return Curvature(h, aqer.correction(h, statistics.answers[key]) if key in statistics.answers else None)
