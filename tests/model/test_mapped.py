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


def mapped_bytes() -> int:
    """Memory of this process that holds pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssFile"].split()[0]) << 10


def test_a_released_tensor_takes_no_memory_until_it_is_read_again(tensor):
    array = tensor.numpy()
    total = array.sum(dtype=np.float64)
    held = mapped_bytes()
    tensor.release()
    assert held - mapped_bytes() > 0.9 * SIZE
    assert array.sum(dtype=np.float64) == total
