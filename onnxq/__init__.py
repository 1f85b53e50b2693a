"""Turn an exported ONNX model into a smaller one, in FP6, FP4 or INT4, and run it in onnxruntime.

Everything here is loaded when it is first asked for, so that `import onnxq` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.analysis.abilities import abilities
    from onnxq.analysis.allocation import allocate
    from onnxq.analysis.compare import compare
    from onnxq.analysis.evaluate import evaluate
    from onnxq.analysis.inspect import inspect
    from onnxq.analysis.perturbation import perturb
    from onnxq.analysis.robustness import attack, robustness
    from onnxq.analysis.sensitivity import sensitivity
    from onnxq.analysis.spikes import spikes
    from onnxq.api import calibrate, plan, quantize, quantize_proto
    from onnxq.errors import OnnxqError
    from onnxq.exporters.folder import export_folder
    from onnxq.exporters.program import export
    from onnxq.recipes import Recipe, load_recipe
    from onnxq.report import Report
    from onnxq.runtime.generate import Generator, generate
    from onnxq.runtime.register import register
    from onnxq.runtime.session import session
    from onnxq.statistics.calibration import Calibration

    __version__: str

__all__ = [
    "Calibration",
    "Generator",
    "OnnxqError",
    "Recipe",
    "Report",
    "__version__",
    "abilities",
    "allocate",
    "attack",
    "calibrate",
    "compare",
    "evaluate",
    "export",
    "export_folder",
    "generate",
    "inspect",
    "load_recipe",
    "perturb",
    "plan",
    "quantize",
    "quantize_proto",
    "register",
    "robustness",
    "sensitivity",
    "session",
    "spikes",
]

_HOMES = {
    "Calibration": "statistics.calibration",
    "Generator": "runtime.generate",
    "OnnxqError": "errors",
    "Recipe": "recipes",
    "Report": "report",
    "abilities": "analysis.abilities",
    "allocate": "analysis.allocation",
    "attack": "analysis.robustness",
    "calibrate": "api",
    "compare": "analysis.compare",
    "evaluate": "analysis.evaluate",
    "export": "exporters.program",
    "export_folder": "exporters.folder",
    "generate": "runtime.generate",
    "inspect": "analysis.inspect",
    "load_recipe": "recipes",
    "perturb": "analysis.perturbation",
    "plan": "api",
    "quantize": "api",
    "quantize_proto": "api",
    "register": "runtime.register",
    "robustness": "analysis.robustness",
    "sensitivity": "analysis.sensitivity",
    "session": "runtime.session",
    "spikes": "analysis.spikes",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for (PEP 562), and keep it."""
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(import_module(f"onnxq.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'onnxq' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxq")
    except PackageNotFoundError:
        # A source tree that is not installed.
        return "unknown"
