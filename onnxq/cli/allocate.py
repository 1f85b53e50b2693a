"""`onnxq allocate`: where the bits should go."""

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.judging import Calib, Data, Limit, MethodName, judged_on, method_named
from onnxq.cli.options import (
    AsJson,
    Batch,
    CalibrationSamples,
    Force,
    ModelFile,
    Providers,
    SequenceLength,
    TargetName,
    Threads,
    provider_list,
    size_in_bytes,
)
from onnxq.errors import UsageError

Bits = Annotated[
    float | None,
    typer.Option(
        min=1.0, max=32.0, metavar="B", help="Budget: bits for each element of the weights.", show_default=False
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Budget: size of the file, such as 40MB.", show_default=False),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="RECIPE", help="The .yaml file to write.", show_default=False),
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


def allocate(
    model: ModelFile,
    data: Data = None,
    bits: Bits = None,
    size: Size = None,
    target: TargetName = "ort",
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
    from onnxq.statistics.calibration import Calibration

    if output is None:
        raise UsageError("where should the recipe go? give -o RECIPE.yaml")
    judged, wanted = judged_on(data, calib), provider_list(providers)
    calibration = Calibration(calib or judged, sequence=sequence, samples=samples, batch=batch, providers=wanted)
    check_file(output, ".yaml", ".yml", force=force)
    with progress("allocating") as advance:
        found = choose(
            model,
            judged,
            bits=bits,
            size_bytes=None if size is None else size_in_bytes(size),
            target=target,
            formats=formats or LADDER,
            method=method_named(method),
            calibration=calibration,
            spike_limit=spikes,
            sequence=sequence,
            batch=batch,
            limit=limit,
            providers=wanted,
            threads=threads,
            progress=advance,
        )
    write_recipe(found.recipe, output)
    if as_json:
        show_json({"model": str(model), "output": str(output), **found.to_dict()})
    else:
        from onnxq.cli.tables import allocated

        show(*allocated(found, output))
