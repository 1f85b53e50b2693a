"""Models of transformers without a cache, exported by PyTorch: every site that a layer has is scaled."""

import numpy as np
import onnxruntime
import pytest

import onnxq
from onnxq.recipes import parse_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 8))
COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Class, configuration, and how often scales of the two layers go where; a norm of BERT's is also a residual.
MODELS = {
    "Llama": ({"intermediate_size": 48, "num_key_value_heads": 2}, {"norm": 4, "value": 2, "gate": 2}, 0),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, {"norm": 4, "value": 2}, 2),
    "Bert": ({"intermediate_size": 48}, {"value": 2}, 6),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_scaled_where_they_can_be(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings, expected, left_alone = MODELS[name]
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{name}Config")(**COMMON | settings)
    made = getattr(transformers, f"{name}Model")(configuration).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made

        def forward(self, input_ids):
            options = {} if name == "Bert" else {"use_cache": False}
            return self.inner(input_ids=input_ids, return_dict=False, **options)[0]

    path, output = tmp_path / "model.onnx", tmp_path / "equalized.onnx"
    torch.onnx.export(
        Hidden(), (torch.zeros(2, 8, dtype=torch.int64),), path, input_names=["input_ids"], external_data=False
    )
    recipe = parse_recipe("equalize: [{method: smooth}]")
    report = onnxq.quantize(path, recipe, output=output, calibration=onnxq.Calibration({"input_ids": TOKENS}, batch=2))
    done = [str(each.done).split()[2] for each in report.changes if each.done]
    assert {kind: done.count(kind) for kind in done} == expected
    assert len(report.changes) - len(done) == left_alone
    before, after = (
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"input_ids": TOKENS[:2]})[0]
        for each in (path, output)
    )
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
