"""Seen from outside: memory that does not grow with the data, no trace but the output, large models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxq

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

# Files that are opened to be written, by where they are; and events that there must be none of.
WATCHED = """
import os, sys
model, folder, data = sys.argv[1:]
import onnxq, onnxq.api, onnxq.recipes, onnxq.statistics.cache, onnxruntime, safetensors.numpy, ml_dtypes
onnxq.Calibration
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    if event == "open" and args[2] is not None and args[2] & WRITES:
        path = args[0] if isinstance(args[0], str) else os.fsdecode(args[0]) if isinstance(args[0], bytes) else None
        if path is None or not os.path.realpath(path).startswith(folder):
            seen.append(f"opened {args[0]} to write")
    elif event.split(".")[0] in ("socket", "subprocess", "pickle", "urllib", "ftplib", "http"):
        seen.append(event)
sys.addaudithook(watch)
cache, stats, small = (os.path.join(folder, name) for name in ("cache", "stats", "small.onnx"))
onnxq.calibrate(model, onnxq.Calibration(data), output=stats)
onnxq.quantize(model, "int4-gptq", output=small, calibration=onnxq.Calibration(data, cache=cache))
onnxq.quantize(model, "int4-gptq", output=small, statistics=stats, force=True)
print("\\n".join(seen))
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


def python(code: str, *arguments: object, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(onnxq.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def model_file(path: Path) -> Path:
    proto = parser.parse_model(TEXT)
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    return path


def test_memory_does_not_grow_with_the_samples(tmp_path):
    growth = int(python(COLLECT, model_file(tmp_path / "m.onnx"), cwd=tmp_path))
    assert growth < GROWTH_BYTES


@pytest.mark.slow
def test_models_over_2_gib_are_calibrated(tmp_path):
    assert python(LARGE, cwd=tmp_path).strip() == "0.0"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "w.data"]


def test_calibration_opens_no_connection_and_writes_nothing_but_what_was_asked_for(tmp_path):
    folders = {name: tmp_path / name for name in ("out", "elsewhere", "source")}
    for each in folders.values():
        each.mkdir()
    model = model_file(folders["source"] / "m.onnx")
    np.save(folders["source"] / "x.npy", np.ones((9, 512), np.float32))
    seen = python(WATCHED, model, folders["out"], folders["source"] / "x.npy", cwd=folders["elsewhere"])
    assert seen.split() == []
    assert list(folders["elsewhere"].iterdir()) == []
    assert sorted(each.name for each in folders["source"].iterdir()) == ["m.onnx", "x.npy"]
    assert sorted(each.name for each in folders["out"].iterdir()) == ["cache", "small.onnx", "stats"]
