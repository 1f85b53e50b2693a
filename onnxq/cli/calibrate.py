"""`onnxq calibrate`: statistics of activations in a file, for any number of conversions."""

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import (
    AsJson,
    CalibrationBatch,
    CalibrationSamples,
    CalibrationSequence,
    Force,
    ModelFile,
    Providers,
    provider_list,
)
from onnxq.errors import number_of

Data = Annotated[
    str,
    typer.Option(
        "--calib",
        metavar="DATA",
        help="An .npz file (one array an input) or a folder of them, token ids (.npy), a .npy file for a single input, "
        "or 'synthetic'.",
        show_default=False,
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="The .safetensors file to write.", show_default=False)
]
ForRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="Collect only what this recipe needs; by default what any method may want.",
        show_default=False,
    ),
]


def calibrate(
    model: ModelFile,
    calib: Data,
    output: Output,
    recipe: ForRecipe = None,
    sequence: CalibrationSequence = 512,
    samples: CalibrationSamples = 128,
    calib_batch: CalibrationBatch = 4,
    providers: Providers = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run a model on data and keep what methods want to know about its activations, for 'quantize --stats'.

    The data itself does not go into the file.
    """
    from rich.text import Text

    from onnxq import api
    from onnxq.statistics.calibration import Calibration

    with progress("calibrating") as advance:
        found = api.calibrate(
            model,
            Calibration(
                calib,
                sequence=sequence,
                samples=samples,
                batch=calib_batch,
                providers=provider_list(providers),
                progress=advance,
            ),
            output=output,
            recipe=recipe,
            force=force,
        )
    tensors = len({key.tensor for key in found.answers})
    if as_json:
        show_json(
            {
                "output": str(output),
                "samples": found.samples,
                "synthetic": found.synthetic,
                "tensors": tensors,
                "size_bytes": output.stat().st_size,
            }
        )
        return
    seen_on = number_of(found.samples, "synthetic sample" if found.synthetic else "sample")
    show(Text(f"{number_of(tensors, 'tensor')} seen on {seen_on}"))
    show(Text(f"Wrote {output} ({output.stat().st_size:,} bytes)"))
    if not tensors:
        show(Text(f"warning: recipe '{recipe}' looks at no activation, so the file is empty", style="yellow"))
