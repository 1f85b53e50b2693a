from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.model.load import load

SIZE = 32 << 20


@pytest.fixture
def tensor(tmp_path: Path):
    """A tensor of 32 MiB in a file, one page after its beginning."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    stored = model.graph.initializer.add(name="w", data_type=1, data_location=1, dims=[SIZE // 4])
    for key, value in (("location", "w.data"), ("offset", "4096")):
        stored.external_data.add(key=key, value=value)
    np.arange(4096 // 4 + SIZE // 4, dtype=np.float32).tofile(tmp_path / "w.data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    return loaded.ir.graph.initializers["w"].const_value


def resident_bytes(file: str) -> int:
    """Memory of this process that holds pages of a file."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:
            ours = line.endswith(f"/{file}")
        elif ours and name == "Rss":
            found += int(value.split()[0]) << 10
    return found


def test_a_released_tensor_takes_no_memory_until_it_is_read_again(tensor):
    array = tensor.numpy()
    total = array.sum(dtype=np.float64)
    assert resident_bytes("w.data") > 0
    tensor.release()
    assert resident_bytes("w.data") < 0.1 * SIZE
    assert array.sum(dtype=np.float64) == total
