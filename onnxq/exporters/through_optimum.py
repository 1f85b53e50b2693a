"""A Hugging Face folder through optimum, which knows most architectures and tasks."""

from pathlib import Path
from typing import Any

from onnxq.errors import ModelError, UsageError, nearest


def export_through_optimum(
    folder: Path, output: Path, config: dict[str, Any], task: str, dtype: str, *, trust_remote_code: bool
) -> None:
    """Write models, configuration and tokenizer into the folder `output`.

    Raises:
        UsageError: optimum does not know the task for this architecture.
        ModelError: optimum cannot export it.
    """
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager

    kind = config["model_type"]
    try:
        known = list(TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers"))
    except KeyError as error:
        raise UsageError(
            f"optimum does not know the architecture '{kind}': try --via torch, or export it yourself"
        ) from error
    if task not in known:
        raise UsageError(f"optimum has no task '{task}' for '{kind}': {nearest(task, known)}")
    try:
        main_export(
            str(folder),
            str(output),
            task=task,
            dtype=dtype,
            framework="pt",
            library_name="transformers",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            do_validation=False,
        )
    except Exception as error:
        raise ModelError(f"optimum cannot export '{folder}' for {task}: {error}") from error
