"""Small models as text, and what a step does to them."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.recipes import parse_recipe
from onnxq.report import Report

Made = tuple[onnx.ModelProto, onnx.ModelProto, Report]


@pytest.fixture
def model() -> Callable[..., onnx.ModelProto]:
    """A model of text, with constants of random numbers where only their shapes are given."""

    def make(text: str, opset: int = 20, **shapes: tuple[int, ...] | np.ndarray) -> onnx.ModelProto:
        made = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> {text}')
        rng = np.random.default_rng(0)
        for name, shape in shapes.items():
            array = shape if isinstance(shape, np.ndarray) else rng.standard_normal(shape).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(array, name))
        return made

    return make


def feeds_of(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Random inputs with channels of very different size, two or three of each open dimension."""
    rng, feeds = np.random.default_rng(seed), {}
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        shape = [
            dim.dim_value or sizes.setdefault(dim.dim_param, 2 + len(sizes)) for dim in value.type.tensor_type.shape.dim
        ]
        sizes_of_channels = np.exp(rng.uniform(-3, 3, shape[-1:]))
        feeds[value.name] = (rng.standard_normal(shape) * sizes_of_channels).astype(np.float32)
    return feeds


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of onnxruntime, with no optimization that reorders sums."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


@pytest.fixture
def equalized() -> Callable[..., Made]:
    """What a step makes of a model; the outputs stay what they are."""

    def make(model: onnx.ModelProto, step: str = "method: smooth", tolerance: float = 1e-5) -> Made:
        recipe = parse_recipe(f"equalize: [{{{step}}}]")
        data = [feeds_of(model, seed) for seed in (1, 2)]
        made, report = onnxq.quantize_proto(model, recipe, calibration=onnxq.Calibration(data))
        for seed in (1, 7):
            feeds = feeds_of(model, seed)
            for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
                assert np.abs(after - before).max() <= tolerance * np.abs(before).max()
        return model, made, report

    return make
