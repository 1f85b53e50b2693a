import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.errors import ModelError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra 'export')")


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.linear(x))


def test_any_module_becomes_a_model_in_evaluation_mode(tmp_path):
    module, path = Layer().train(), tmp_path / "layer.onnx"
    dims = {"x": {0: torch.export.Dim("rows")}}
    made = onnxq.export(module, (torch.zeros(2, 8),), output=path, dynamic_shapes=dims, output_names=["y"])
    assert made == path
    assert module.training
    x = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    (found,) = onnxruntime.InferenceSession(path).run(["y"], {"x": x})
    np.testing.assert_allclose(found, module.linear(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    assert b"test_program.py" not in path.read_bytes()
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path):
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ModelError, match=r"PyTorch .* cannot export the module: "):
        onnxq.export(Branch(), (torch.zeros(2),), output=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_stays(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        onnxq.export(Layer(), (torch.zeros(2, 8),), output=tmp_path / "m.onnx")
