"""`onnxq export`: a Hugging Face folder as ONNX."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.console import show, show_json
from onnxq.cli.options import AsJson


class _Dtype(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"


class _Route(StrEnum):
    optimum = "optimum"
    torch = "torch"


Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A local Hugging Face folder, with config.json.", show_default=False)
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The folder to write.", show_default=False)]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What for, such as text-generation-with-past, feature-extraction, text-classification or "
        "image-classification; by default what the architecture is made for.",
        show_default=False,
    ),
]
FloatType = Annotated[_Dtype, typer.Option("--dtype", help="Float type of weights and arithmetic.")]
Via = Annotated[
    _Route | None,
    typer.Option(help="The exporter: optimum, or PyTorch's own; by default optimum if installed.", show_default=False),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the folder brings.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that exists, of an earlier export.")]


def export(
    folder: Folder,
    output: Output,
    task: Task = None,
    dtype: FloatType = _Dtype.fp32,
    via: Via = None,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    r"""Export a local Hugging Face folder to ONNX, a language model with its cache of keys and values.

    Needs pip install 'onnxq\[export]'. Nothing is downloaded, and OUT appears complete or not at all.
    """
    from rich.text import Text

    from onnxq.exporters.folder import export_folder

    made = export_folder(
        folder,
        output,
        task=task,
        dtype=dtype.value,
        route=None if via is None else via.value,
        trust_remote_code=trust_remote_code,
        force=force,
    )
    if as_json:
        show_json(
            {
                "folder": str(made.folder),
                "task": made.task,
                "via": made.route,
                "models": [str(path) for path in made.models],
                "size_bytes": made.size_bytes,
            }
        )
        return
    show(Text(f"{made.task} through {made.route}, {made.size_bytes / 1e6:,.1f} MB:"))
    show(*(Text(f"  {path}") for path in made.models))
