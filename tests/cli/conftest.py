from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.cli.app import run

MODEL = """
<ir_version: 10, opset_import: ["": 20]>
two_layers (float[batch, 64] x) => (float[batch, 32] y) {
  h = MatMul(x, first)
  r = Relu(h)
  y = MatMul(r, second)
}
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def onnxq(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process."""
    # The package registers its commands when it is imported.
    import onnxq.cli  # noqa: F401

    def call(*arguments: str | Path) -> Done:
        code = run([str(each) for each in arguments])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of two matmuls with 64 x 48 and 48 x 32 weights."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(MODEL)
    for name, shape in (("first", (64, 48)), ("second", (48, 32))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def broken_weight(model: Path) -> Path:
    """The same with a NaN in the first weight."""
    proto = onnx.load(model)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[3, 4] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "first"))
    path = model.with_name("nan.onnx")
    path.write_bytes(proto.SerializeToString())
    return path
