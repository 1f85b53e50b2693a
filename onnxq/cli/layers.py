"""`onnxq sensitivity` and `onnxq allocate`: which layers matter, and where the bits should go."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import (
    AsJson,
    Batch,
    CalibrationSamples,
    ModelFile,
    Providers,
    SequenceLength,
    Threads,
    provider_list,
    size_in_bytes,
)
from onnxq.errors import UsageError, nearest

if TYPE_CHECKING:
    from onnxq.analysis.perturbation import Perturbations
    from onnxq.analysis.sensitivity import Sensitivity
    from onnxq.analysis.spikes import Spike
    from onnxq.recipes.spec import Method
    from onnxq.statistics.calibration import Calibration


class View(StrEnum):
    """What is looked at."""

    formats = "formats"
    noise = "noise"
    spikes = "spikes"


Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="D",
        help="What variants are judged on: token ids (.npy), or inputs (.npz); by default what --calib names.",
        show_default=False,
    ),
]
Rungs = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="How layers are quantized: a preset, a YAML file, or a format with its groups, such as int3-g64. "
        "Repeatable; by default int4.",
        show_default=False,
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME|FILE",
        help="To choose among, as --recipe of 'sensitivity', from the fewest bits up. Repeatable; by default int2-g32, "
        "int3-g128, int3-g64, int3-g32, int4-g128, int4-g32, fp6 and int8.",
        show_default=False,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="rtn, clip, search, hqq, kmeans, gptq, erq or pb-llm, in place of what the recipes say.",
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
Worst = Annotated[int, typer.Option("--worst", min=1, metavar="N", help="Show the N layers that matter most.")]
Strength = Annotated[float, typer.Option("--sqnr", metavar="DB", help="Of the view noise: its strength.")]
Noise = Annotated[
    str,
    typer.Option(
        "--noise", metavar="KIND", help="Of the view noise: gaussian, uniform, rademacher, proportional or inverse."
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        min=1.0, max=32.0, metavar="B", help="Budget: bits for each element of the weights.", show_default=False
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Budget: size of the file with --target ort, such as 40MB.", show_default=False),
]
SpikeLimit = Annotated[
    float | None,
    typer.Option(
        "--spikes",
        min=1.0,
        metavar="KAPPA",
        help="Leave layers float whose input has spikes beyond this; 20 is usual.",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="RECIPE", help="The .yaml file to write.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]


def sensitivity(
    model: ModelFile,
    data: Data = None,
    recipe: Rungs = None,
    view: Annotated[View, typer.Option(help="Formats, noise of one strength, or spikes in the inputs.")] = View.formats,
    method: MethodName = None,
    sqnr: Strength = 20.0,
    noise: Noise = "gaussian",
    calib: Calib = None,
    sequence: SequenceLength = 256,
    samples: CalibrationSamples = 128,
    limit: Limit = 16,
    batch: Batch = 8,
    worst: Worst = 20,
    providers: Providers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show which layers matter: each is quantized alone, and the predictions are compared with the model's own.

    KL is how much the predictions change, in nats. The model is loaded once, and each run swaps one weight.
    """
    judged = _judged(data, calib)
    found: Sensitivity | Perturbations | tuple[Spike, ...]
    common: dict[str, Any] = {
        "sequence": sequence,
        "batch": batch,
        "limit": limit,
        "providers": provider_list(providers),
        "threads": threads,
    }
    with progress("looking at layers") as advance:
        calibration = _calibration(calib or judged, sequence, samples, batch, providers)
        if view is View.spikes:
            from onnxq.analysis.spikes import spikes

            found = spikes(model, calibration)
        elif view is View.noise:
            from onnxq.analysis.perturbation import perturb

            found = perturb(model, judged, sqnr_db=sqnr, kind=noise, progress=advance, **common)  # type: ignore[arg-type]
        else:
            from onnxq.analysis.sensitivity import sensitivity as measure

            found = measure(
                model,
                judged,
                recipe or "int4",
                method=_method(method),
                calibration=calibration,
                progress=advance,
                **common,
            )
    if as_json:
        plain = {"spikes": [each.to_dict() for each in found]} if isinstance(found, tuple) else found.to_dict()
        show_json({"model": str(model), **plain})
    else:
        from onnxq.cli.tables import layers_shown

        show(*layers_shown(found, worst))


def allocate(
    model: ModelFile,
    data: Data = None,
    bits: Bits = None,
    size: Size = None,
    output: RecipeFile = None,
    formats: Formats = None,
    method: MethodName = "gptq",
    spikes: SpikeLimit = None,
    calib: Calib = None,
    sequence: SequenceLength = 256,
    samples: CalibrationSamples = 128,
    limit: Limit = 16,
    batch: Batch = 8,
    providers: Providers = None,
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Choose a format for each weight within a budget, and write that as a recipe for 'onnxq quantize'.

    Each weight is quantized alone in each format; the best sum within the budget is measured as a whole, beside one
    format for all, and the better one is taken.
    """
    from onnxq.analysis.allocation import allocate as choose
    from onnxq.recipes.rungs import LADDER
    from onnxq.recipes.write import write_recipe
    from onnxq.statistics.cache import check_file

    if output is None:
        raise UsageError("where should the recipe go? give -o RECIPE.yaml")
    judged = _judged(data, calib)
    check_file(output, ".yaml", ".yml", force=force)
    with progress("allocating") as advance:
        found = choose(
            model,
            judged,
            bits=bits,
            size_bytes=None if size is None else size_in_bytes(size),
            formats=formats or LADDER,
            method=_method(method),
            calibration=_calibration(calib or judged, sequence, samples, batch, providers),
            spike_limit=spikes,
            sequence=sequence,
            batch=batch,
            limit=limit,
            providers=provider_list(providers),
            threads=threads,
            progress=advance,
        )
    write_recipe(found.recipe, output)
    if as_json:
        show_json({"model": str(model), "output": str(output), **found.to_dict()})
    else:
        from onnxq.cli.tables import allocated

        show(*allocated(found, output))


def _judged(data: Path | None, calib: str | None) -> str:
    """What variants are judged on."""
    if data is None and calib is None:
        raise UsageError("layers are judged on data: give --data D, or --calib DATA for both")
    return str(data or calib)


def _calibration(data: str, sequence: int, samples: int, batch: int, providers: str | None) -> "Calibration":
    from onnxq.statistics.calibration import Calibration

    return Calibration(data, sequence=sequence, samples=samples, batch=batch, providers=provider_list(providers))


def _method(name: str | None) -> "Method | None":
    from onnxq.methods.solve import SOLVERS

    if name is not None and name not in SOLVERS:
        raise UsageError(f"no method '{name}'; {nearest(name, SOLVERS)}")
    return cast("Method | None", name)
