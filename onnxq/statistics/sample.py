"""A few rows of activations, for methods that try something out on them."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from onnxq.errors import NonFiniteError
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.taps import Tap, tapped
from onnxq.runtime.session import run, session
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.nodes import Nodes
from onnxq.statistics.views import LAST

# Prime, so that the rows of a batch stand at all places of its samples.
_STRIDE = 7
_END = np.iinfo(np.int64).max


def sample_rows(model: Model, widths: Mapping[str, int], calibration: Calibration, rows: int) -> dict[str, np.ndarray]:
    """Every seventh row of some values, from the first samples on.

    Args:
        model: Not changed.
        widths: Channels of each value, by its name; they lie along its last axis.
        calibration: The data.
        rows: At most so many of each value.

    Returns:
        float32 [n, channels] for each value.

    Raises:
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
        OutputError: A temporary file cannot be written.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in widths}
    taps = [_tap(at, name, width, opset_of(model.ir)) for at, (name, width) in enumerate(widths.items())]
    if not taps:
        return {}
    with tapped(model) as opened:
        running = session(opened.open(taps), providers=calibration.providers)
        left = rows
        for batch in calibration.batches(model):
            results = run(running, [tap.outputs[0].name for tap in taps], batch.inputs)
            for name, result in zip(widths, results, strict=True):
                if not np.isfinite(result).all():
                    raise NonFiniteError(
                        f"activation '{name}' holds NaN or Inf on the calibration data, "
                        f"sample {batch.first} to {batch.last}"
                    )
                found[name].append(result[:rows])
            left -= min(len(result) for result in results)
            if left <= 0:
                break
        del running
    return {name: np.concatenate(parts)[:rows] for name, parts in found.items()}


def _tap(number: int, name: str, width: int, opset: int) -> Tap:
    nodes = Nodes(f"onnxq.sample/{number}", opset)
    floats = nodes.add("Cast", name, to=onnx.TensorProto.FLOAT)
    rows = LAST.rows(nodes, floats, width)
    limits = nodes.ints(0), nodes.ints(_END), nodes.ints(0), nodes.ints(_STRIDE)
    taken = nodes.add("Slice", rows, *limits)
    return Tap([name], nodes.made, [helper.make_tensor_value_info(taken, onnx.TensorProto.FLOAT, None)])
