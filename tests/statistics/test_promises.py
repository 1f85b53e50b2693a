"""Seen from outside: memory that does not grow with the data, no trace but the output, large models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 512] x) => (float[n, 512] y) { h = Relu(x) y = MatMul(h, w) }"""

GROWTH_BYTES = 24 << 20

# What samples leave behind would be 2 MiB each.
COLLECT = """
import sys
import numpy as np
from onnxq.model.load import load
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Request

class Feeds:
    def __init__(self, count):
        self.count = count
    def __iter__(self):
        rng = np.random.default_rng(0)
        return ({"x": rng.standard_normal((1024, 512), np.float32)} for _ in range(self.count))

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) << 10

model = load(sys.argv[1])
asked = [Request("h", 512, ("hessian", "channel_absmax", "histogram"))]
collect(model, asked, Calibration(Feeds(4), samples=None))
before = peak()
collect(model, asked, Calibration(Feeds(100), samples=None))
print(peak() - before)
"""

CALIBRATE = """
import os
model, folder, data = sys.argv[1:]
cache, stats, small = (os.path.join(folder, name) for name in ("cache", "stats.safetensors", "small.onnx"))
onnxq.calibrate(model, onnxq.Calibration(data), output=stats)
onnxq.quantize(model, "int4-gptq", output=small, calibration=onnxq.Calibration(data, cache=cache))
onnxq.quantize(model, "int4-gptq", output=small, statistics=stats, force=True)
"""

# Nine weights of 256 MiB, which a protobuf message could not hold.
LARGE = """
import numpy as np
import onnx, onnx.parser
from onnxq.model.load import load
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Request

body = " ".join(f"h{at + 1} = MatMul(h{at}, w{at})" for at in range(9))
text = "g (float[n, 8192] h0) => (float[n, 8192] h9) { %s }" % body
proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>' + text)
for at in range(9):
    tensor = proto.graph.initializer.add(name=f"w{at}", data_type=1, data_location=1, dims=[8192, 8192])
    tensor.external_data.add(key="location", value="w.data")
    tensor.external_data.add(key="offset", value=str(at << 28))
# A hole, so that it takes no room.
with open("w.data", "wb") as file:
    file.truncate(9 << 28)
onnx.save(proto, "m.onnx")
x = np.arange(3 * 8192, dtype=np.float32).reshape(3, 8192)
asked = [Request("h0", 8192, ("channel_max",)), Request("h9", 8192, ("max",))]
found = collect(load("m.onnx"), asked, Calibration(x), budget_bytes=1)
assert np.array_equal(found.get("h0", "channel_max"), x[2])
print(found.get("h9", "max"))
"""


def model_file(path: Path) -> Path:
    proto = parser.parse_model(TEXT)
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    return path


def test_memory_does_not_grow_with_the_samples(python, tmp_path):
    growth = int(python(COLLECT, model_file(tmp_path / "m.onnx"), cwd=tmp_path))
    assert growth < GROWTH_BYTES


@pytest.mark.slow
def test_models_over_2_gib_are_calibrated(python, tmp_path):
    assert python(LARGE, cwd=tmp_path).strip() == "0.0"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "w.data"]


def test_calibration_opens_no_connection_and_writes_nothing_but_what_was_asked_for(trespasses, tmp_path):
    folders = {name: tmp_path / name for name in ("out", "elsewhere", "source")}
    for each in folders.values():
        each.mkdir()
    model = model_file(folders["source"] / "m.onnx")
    np.save(folders["source"] / "x.npy", np.ones((9, 512), np.float32))
    imports = """
import onnxq, onnxq.api, onnxq.recipes, onnxq.statistics.cache, onnxruntime, safetensors.numpy, ml_dtypes
onnxq.Calibration
"""
    arguments = model, folders["out"], folders["source"] / "x.npy"
    assert trespasses(imports, CALIBRATE, *arguments, folder=folders["out"], cwd=folders["elsewhere"]) == []
    assert list(folders["elsewhere"].iterdir()) == []
    assert sorted(each.name for each in folders["source"].iterdir()) == ["m.onnx", "x.npy"]
    assert sorted(each.name for each in folders["out"].iterdir()) == ["cache", "small.onnx", "stats.safetensors"]
