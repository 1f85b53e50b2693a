"""Arguments and options that several commands share."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onnxq.errors import UsageError


class NonFinite(StrEnum):
    """What to do with a weight that holds NaN or Inf."""

    error = "error"
    skip = "skip"
    clamp = "clamp"


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="A preset (see 'onnxq recipes') or a YAML file.")
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="ort|native|standard|ort-int8|ort-cuda",
        help="ort: runs in onnxruntime as it is. standard: the tensor types of ONNX 1.23, for interchange. "
        "ort-int8: FP6 E2M3 and FP4 as int8, for onnxruntime's 8-bit kernel. "
        "native: all for onnxq's own kernels. ort-cuda: weights as onnxq's GPU kernels read them.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Quantize only weights whose name, or node's name, matches. Repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave weights as they are that match. Repeatable.")
]
NonFinitePolicy = Annotated[
    NonFinite | None,
    typer.Option(
        "--non-finite",
        help="A weight with NaN or Inf: refuse the model, leave that weight as it is, or replace those numbers; "
        "by default what the recipe says.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads; by default one a processor.", show_default=False)
]
SequenceLength = Annotated[int, typer.Option("--seq", min=2, metavar="N", help="Tokens in a window.")]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Windows or samples run at once.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use only the first N windows or samples; by default all.")
]
Providers = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="onnxruntime's execution providers in order of preference, such as cpu or cuda,cpu.",
        show_default=False,
    ),
]
AccuracyLevel = Annotated[
    int | None,
    typer.Option(
        "--accuracy-level",
        min=0,
        max=4,
        metavar="0-4",
        help="How onnxruntime's own 2-, 4- and 8-bit kernels compute: 1 in float32, 4 with activations rounded to int8 "
        "(onnxruntime's default).",
        show_default=False,
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--calib",
        metavar="DATA",
        help="Data for methods that look at activations: an .npz file (one array an input) or a folder of them, token "
        "ids (.npy), a .npy file for a single input, or 'synthetic'.",
        show_default=False,
    ),
]
CalibrationSequence = Annotated[int, typer.Option("--seq", min=2, metavar="N", help="Tokens in a window.")]
CalibrationSamples = Annotated[
    int, typer.Option("--samples", min=1, metavar="N", help="Windows or samples to calibrate on, at most.")
]
CalibrationBatch = Annotated[
    int, typer.Option("--calib-batch", min=1, metavar="N", help="Windows or samples run at once.")
]
CalibrationCache = Annotated[
    Path | None,
    typer.Option(
        "--calib-cache",
        metavar="FILE",
        help="Keep the statistics in this file, and take them from it when model and data are the same.",
        show_default=False,
    ),
]


def size_in_bytes(text: str) -> int:
    """The bytes of `40MB`, `1.5 GB` or `300000`; a kB is 1000 bytes.

    Raises:
        UsageError: It is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"'{text}' is not a size; write it as 40MB, 900kB or 1.5GB")
    return int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()])


def provider_list(text: str | None) -> list[str] | None:
    """The providers of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else None
