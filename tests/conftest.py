import importlib.util
from pathlib import Path

import onnx
import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


def script(path: Path):
    """A script of the samples as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sample_with_cache(tmp_path_factory):
    """The sample language model with a cache, in one of its forms and float types: the path of a file."""
    made = {}

    def make(form: str, dtype: int = onnx.TensorProto.FLOAT) -> Path:
        if (form, dtype) not in made:
            made[form, dtype] = tmp_path_factory.mktemp("cached") / f"{form}.onnx"
            model = script(SAMPLES / "code_lm" / "cached.py").cached(form, dtype=dtype)
            onnx.save(model, made[form, dtype])
        return made[form, dtype]

    return make
