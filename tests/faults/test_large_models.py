"""Models over 2 GiB: their form is chosen before anything is serialized, and memory does not grow with them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

import onnxq
from onnxq.model import wire

GIB = 1 << 30
LARGEST = 64 << 20
# Promised: 512 MiB and three times the largest tensor.
LIMIT = (512 << 20) + 3 * LARGEST

MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[1] x) => (float[1] y) { y = Relu(x) }
"""

# The kernel counts private memory against RLIMIT_DATA, and not what is mapped from files.
CONVERT = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))
import numpy as np
import onnx_ir as ir
from onnxq.model.load import load
from onnxq.model.save import stage

source, output = sys.argv[1:]
model = load(source)
with stage(output) as staging:
    for value in list(model.ir.graph.initializers.values())[:2]:
        old = value.const_value.numpy()
        rows = (np.ascontiguousarray(row) for row in old)
        value.const_value = staging.append(value.name, ir.DataType.FLOAT, old.shape, rows)
    staging.commit(model)
print(load(output).size_bytes)
"""


def _external(folder: Path, size: int) -> Path:
    """A model with `size` bytes of external data; the file is a hole, so that it takes no room."""
    model = onnx.parser.parse_model(MODEL)
    for number in range(size // LARGEST):
        tensor = model.graph.initializer.add(name=f"w{number}", data_type=1, data_location=1)
        tensor.dims.extend([64, LARGEST // 256])
        tensor.external_data.add(key="location", value="w.data")
        tensor.external_data.add(key="offset", value=str(number * LARGEST))
    with (folder / "w.data").open("wb") as file:
        file.truncate(size)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _embedded(folder: Path, size: int) -> Path:
    """A model with `size` bytes of `raw_data`, each a hole in the file."""
    model = onnx.parser.parse_model(MODEL)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = [
        onnx.TensorProto(name=f"w{number}", data_type=1, dims=[64, LARGEST // 256]).SerializeToString()
        + wire.key(9)
        + wire.encode_varint(LARGEST)
        for number in range(size // LARGEST)
    ]
    heads = [wire.key(5) + wire.encode_varint(len(head) + LARGEST) + head for head in heads]
    length = len(graph) + sum(len(head) + LARGEST for head in heads)
    with (folder / "m.onnx").open("wb") as file:
        file.write(model.SerializeToString() + wire.key(7) + wire.encode_varint(length) + graph)
        for head in heads:
            file.write(head)
            file.truncate(file.seek(LARGEST, os.SEEK_CUR))
    return folder / "m.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "external"),
    [(_external, 34 * LARGEST, True), (_embedded, 17 * LARGEST, True), (_embedded, 12 * LARGEST, False)],
)
def test_memory_does_not_grow_with_the_model(
    make: Callable[[Path, int], Path], size: int, external: bool, tmp_path: Path
) -> None:
    source = make(tmp_path, size)
    (tmp_path / "out").mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(onnxq.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", CONVERT, source, tmp_path / "out" / "m.onnx"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= size
    assert (tmp_path / "out" / "m.onnx.data").exists() == external
    # pytest keeps the folders of three runs.
    shutil.rmtree(tmp_path / "out")
