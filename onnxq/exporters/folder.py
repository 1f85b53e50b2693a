"""A Hugging Face folder to a folder of ONNX models, all of it or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxq.errors import OutputError, UsageError
from onnxq.exporters.surroundings import is_installed, offline, quiet, require, without_bars
from onnxq.exporters.task import read_config, task_of
from onnxq.exporters.through_optimum import export_through_optimum
from onnxq.exporters.through_torch import export_through_torch
from onnxq.model.load import guard
from onnxq.model.replacing import output_errors
from onnxq.model.staging import staging_folder

Route = Literal["optimum", "torch"]
Dtype = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it is.
        task: what the models are for.
        route: through which exporter they went.
        models: the .onnx files.
        size_bytes: of these and their external data.
    """

    folder: Path
    task: str
    route: Route
    models: tuple[Path, ...]
    size_bytes: int


def export_folder(
    folder: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    dtype: Dtype = "fp32",
    route: Route | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
) -> Exported:
    """Export a local Hugging Face folder; the network is not asked for anything.

    Args:
        folder: with config.json, weights and usually a tokenizer.
        output: the folder to write. It appears complete or not at all.
        task: as optimum calls it, `text-generation-with-past` for a language model with a cache; by default what the
            architecture is made for.
        dtype: float type of the weights and the arithmetic.
        route: `optimum` for all it knows, or `torch` (PyTorch's own exporter); by default optimum where it is
            installed.
        trust_remote_code: run Python code that the folder brings; never by default.
        force: replace an output that exists, if it is an export or empty.

    Raises:
        ModelError: the folder is no model, or cannot be exported.
        UsageError: no such task, or the folder's own code would have to run.
        OutputError: the output exists, or cannot be written.
        MissingExtraError: PyTorch, transformers or optimum is not installed.
    """
    folder, output = Path(folder), Path(output).absolute()
    config = read_config(folder)
    if dtype not in ("fp32", "fp16"):
        raise UsageError(f"dtype is '{dtype}'; valid: fp32, fp16")
    if config.get("auto_map") and not trust_remote_code:
        raise UsageError(
            f"'{folder}' brings Python code of its own; read it, and pass --trust-remote-code "
            "(trust_remote_code=True) to run it"
        )
    _check_output(output, folder, force=force)
    require("torch", "transformers")
    if route not in (None, "optimum", "torch"):
        raise UsageError(f"route is '{route}'; valid: optimum, torch")
    if route is None:
        route = "optimum" if is_installed("optimum.exporters.onnx") else "torch"
    if route == "optimum":
        require("optimum.exporters.onnx")
    task = task or task_of(config)
    through = export_through_optimum if route == "optimum" else export_through_torch
    with _staged(output) as made:
        with offline(), quiet(), without_bars():
            through(folder, made, config, task, dtype, trust_remote_code=trust_remote_code)
        sizes = {path.name: guard(path).size_bytes for path in sorted(made.glob("*.onnx"))}
    return Exported(output, task, route, tuple(output / name for name in sizes), sum(sizes.values()))


def _check_output(output: Path, folder: Path, *, force: bool) -> None:
    if output == folder.absolute() or folder.absolute().is_relative_to(output):
        raise OutputError(f"'{output}' holds the model itself; give another folder")
    if not output.parent.is_dir():
        raise OutputError(f"the folder '{output.parent}' does not exist; create it first")
    if output.exists() and not force:
        raise OutputError(f"'{output}' exists; pass --force (force=True) to replace it")
    if output.exists() and not output.is_dir():
        raise OutputError(f"'{output}' is a file; an export is a folder")
    if output.exists() and any(output.iterdir()) and not _is_export(output):
        raise OutputError(f"'{output}' holds other things than an export, which would be lost; name another folder")


def _is_export(folder: Path) -> bool:
    """Whether a folder is what an export leaves, with what was made of it since."""
    return (folder / "config.json").is_file() and any(folder.glob("*.onnx"))


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A folder to make in a hidden one; it takes its name when the context ends well."""
    with output_errors(f"cannot write '{output}'", "; nothing was changed"), staging_folder(output.parent) as hidden:
        made, replaced = hidden / "made", hidden / "replaced"
        yield made
        if not output.exists():
            made.rename(output)
            return
        output.rename(replaced)
        try:
            made.rename(output)
        except OSError:
            replaced.rename(output)
            raise
