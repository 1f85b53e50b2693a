"""Open a model in onnxruntime, and say in plain words why it could not be opened or run."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import MissingExtraError, SessionError, UsageError, nearest
from onnxq.runtime.failures import plain_cause
from onnxq.runtime.register import register

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# The accuracy level at which products may round activations to int8.
INT8_LEVEL = 4
_SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "gpu": CUDA}

_GRAPH = {"enable_cuda_graph": "1"}
# The arena on the GPU doubles whenever it grows: weights that went there could take twice the memory.
_WEIGHTS_BESIDE_ARENA = "session.use_device_allocator_for_initializers"
# onnxruntime logs each failure to stderr and raises it too; the exception alone is enough for a user.
_FATAL_ONLY = 4


def session(
    model: str | Path | bytes,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    options: "onnxruntime.SessionOptions | None" = None,
    native: bool = True,
    cuda_graph: bool = False,
) -> "onnxruntime.InferenceSession":
    """Open a model for running.

    Args:
        model: path of an .onnx file, or the bytes of a serialized model.
        providers: execution providers in order of preference, by onnxruntime's names or as `cpu`, `cuda`. By default
            CUDA where onnxruntime has it, then the CPU.
        threads: threads within one operator; by default onnxruntime uses every core.
        accuracy_level: how exactly 2-, 4- and 8-bit matmuls that onnxruntime fuses itself (`DequantizeLinear` and
            `MatMul` into `MatMulNBits`) compute: 4 rounds activations to int8 and is onnxruntime's default, 1 is
            float32, 2 float16, 3 bfloat16, 0 whatever the kernel has for the input (float32 on the CPU). 4 lets onnxq's
            own CPU kernels round activations as well, which they do not by default.
        options: session options to start from; they are changed in place.
        native: run onnxq's operators in its own kernels where the CPU or CUDA is the first provider and the kernels are
            there (`onnxq doctor`); else the functions in the model run.
        cuda_graph: let CUDA capture a run and replay it; every later run must have the same shapes and addresses.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UsageError: no provider, or one that this onnxruntime does not have; no threads; an accuracy level out of range.
        SessionError: onnxruntime refuses the model, or a provider asked for by name could not start.
    """
    ort = _onnxruntime()
    chosen = _choose(ort, providers)
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; at least one has to work")
    if threads is not None:
        options.intra_op_num_threads = threads
    if accuracy_level is not None:
        if accuracy_level not in range(5):
            raise UsageError(f"accuracy_level is {accuracy_level}; valid: 0, 1, 2, 3, 4")
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if chosen[0] == CUDA:
        options.add_session_config_entry(_WEIGHTS_BESIDE_ARENA, "1")
    if native and chosen[0] in (CPU, CUDA):
        register(options, int8=accuracy_level == INT8_LEVEL, cuda=chosen[0] == CUDA)
    name = "the model" if isinstance(model, bytes) else f"'{model}'"
    try:
        opened = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(name, _GRAPH if cuda_graph and name == CUDA else {}) for name in chosen],
        )
    except Exception as error:
        raise SessionError(f"onnxruntime {ort.__version__} cannot load {name}: {plain_cause(error)}") from error
    if providers is not None and opened.get_providers()[0] != chosen[0]:
        # onnxruntime itself only logs this and goes on, many times slower, with the next provider.
        raise SessionError(f"onnxruntime could not start {chosen[0]} and fell back to {opened.get_providers()[0]}")
    logger.debug("%s runs on %s", name, ", ".join(opened.get_providers()))
    return opened


def run(
    opened: "onnxruntime.InferenceSession", outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Run once and return `outputs` in order; a SessionError says which node failed and why."""
    with _explained(feed):
        results: list[NDArray[Any]] = opened.run(list(outputs), dict(feed))
    return results


def run_bound(
    opened: "onnxruntime.InferenceSession",
    binding: Any,
    feed: Mapping[str, NDArray[Any]],
    graph_id: str | None = None,
) -> None:
    """Run with bound inputs and outputs.

    Args:
        opened: the session.
        binding: of the session.
        feed: the inputs that were bound, for the SessionError that says what failed.
        graph_id: which CUDA graph the run belongs to; "-1" for none.
    """
    options = None
    if graph_id is not None:
        options = _onnxruntime().RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph_id)
    with _explained(feed):
        opened.run_with_iobinding(binding, options)


@contextmanager
def _explained(feed: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype}{list(np.shape(value))}" for name, value in feed.items())
        raise SessionError(f"onnxruntime failed while running ({shapes}): {plain_cause(error)}") from error


def available_providers() -> tuple[str, list[str]]:
    """The version of onnxruntime, and its execution providers.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    ort = _onnxruntime()
    return ort.__version__, ort.get_available_providers()


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "running a model needs onnxruntime, which is not installed: pip install 'onnxq[cpu]', or 'onnxq[gpu]'"
        ) from error
    return onnxruntime


def _choose(ort: Any, providers: Sequence[str] | None) -> list[str]:
    available: list[str] = ort.get_available_providers()
    if providers is None:
        chosen = [CUDA, CPU] if CUDA in available else [CPU]
    else:
        if not providers:
            raise UsageError("the list names no execution provider: leave it out, or name cpu or cuda")
        # A text is a sequence of texts too.
        names = [providers] if isinstance(providers, str) else providers
        chosen = [_SHORT_NAMES.get(name.lower(), name) for name in names]
        for name in chosen:
            if name not in available:
                hint = "; pip install 'onnxq[gpu]' brings CUDA" if name == CUDA else ""
                raise UsageError(f"onnxruntime has no provider '{name}' here: {nearest(name, available)}{hint}")
    if CUDA in chosen:
        # Finds the CUDA libraries of the nvidia-* Python packages, which the loader does not search by itself.
        ort.preload_dlls()
    return chosen
