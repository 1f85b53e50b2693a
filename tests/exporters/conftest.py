import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "make_dialects.py"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A Hugging Face folder of a tiny model of some architecture, with random weights."""
    spec = importlib.util.spec_from_file_location("make_dialects", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = module.make_folder(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return make
