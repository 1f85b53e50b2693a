"""What `sensitivity` and `allocate` share: data that changed layers are judged on, and how layers are changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from onnxq.errors import UsageError, nearest

if TYPE_CHECKING:
    from onnxq.recipes.spec import Method

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="D",
        help="What variants are judged on: token ids (.npy), or inputs (.npz); by default what --calib names.",
        show_default=False,
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        metavar="DATA",
        help="Data for methods that look at activations, in any form that 'onnxq quantize' takes; by default --data.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="Judge on the first N windows or samples.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="rtn, clip, search, hqq, kmeans, gptq, erq or pb-llm, in place of what the recipes say.",
        show_default=False,
    ),
]


def judged_on(data: Path | None, calib: str | None) -> str:
    """What changed layers are judged on.

    Raises:
        UsageError: Neither says so.
    """
    if data is None and calib is None:
        raise UsageError("layers are judged on data: give --data D, or --calib DATA for both")
    return str(data or calib)


def method_named(name: str | None) -> "Method | None":
    """The method of a name.

    Raises:
        UsageError: There is none.
    """
    from onnxq.methods.solve import SOLVERS

    if name is not None and name not in SOLVERS:
        raise UsageError(f"no method '{name}'; {nearest(name, SOLVERS)}")
    return cast("Method | None", name)
