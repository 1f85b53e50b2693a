"""`onnxq sensitivity`: which layers matter."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, cast

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.judging import Calib, Data, Limit, MethodName, judged_on, method_named
from onnxq.cli.options import (
    AsJson,
    Batch,
    CalibrationSamples,
    ModelFile,
    Providers,
    SequenceLength,
    Threads,
    provider_list,
)

if TYPE_CHECKING:
    from onnxq.analysis.perturbation import Perturbations
    from onnxq.analysis.sensitivity import Sensitivity
    from onnxq.analysis.spikes import Spike
    from onnxq.methods.noise import Kind


class View(StrEnum):
    """What is looked at."""

    formats = "formats"
    noise = "noise"
    spikes = "spikes"


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
Worst = Annotated[int, typer.Option("--worst", min=1, metavar="N", help="Show the N layers that matter most.")]
Strength = Annotated[float, typer.Option("--sqnr", metavar="DB", help="Of the view noise: its strength.")]
Noise = Annotated[
    str,
    typer.Option(
        "--noise", metavar="KIND", help="Of the view noise: gaussian, uniform, rademacher, proportional or inverse."
    ),
]


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
    from onnxq.statistics.calibration import Calibration

    judged, wanted = judged_on(data, calib), provider_list(providers)
    calibration = Calibration(calib or judged, sequence=sequence, samples=samples, batch=batch, providers=wanted)
    found: Sensitivity | Perturbations | tuple[Spike, ...]
    with progress("looking at layers") as advance:
        if view is View.spikes:
            from onnxq.analysis.spikes import spikes

            found = spikes(model, calibration)
        elif view is View.noise:
            from onnxq.analysis.perturbation import perturb

            found = perturb(
                model,
                judged,
                sqnr_db=sqnr,
                kind=cast("Kind", noise),
                sequence=sequence,
                batch=batch,
                limit=limit,
                providers=wanted,
                threads=threads,
                progress=advance,
            )
        else:
            from onnxq.analysis.sensitivity import sensitivity as measure

            found = measure(
                model,
                judged,
                recipe or "int4",
                method=method_named(method),
                calibration=calibration,
                sequence=sequence,
                batch=batch,
                limit=limit,
                providers=wanted,
                threads=threads,
                progress=advance,
            )
    if as_json:
        plain = {"spikes": [each.to_dict() for each in found]} if isinstance(found, tuple) else found.to_dict()
        show_json({"model": str(model), **plain})
    else:
        from onnxq.cli.tables import layers_shown

        show(*layers_shown(found, worst))
