"""`onnxq evaluate` and `onnxq compare`: what a model is worth, and where it departs from another."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import (
    AccuracyLevel,
    AsJson,
    Batch,
    Limit,
    ModelFile,
    Providers,
    SequenceLength,
    Threads,
    provider_list,
)
from onnxq.cli.verdicts import comparison_shown, evaluation_shown
from onnxq.errors import DataError, nearest

if TYPE_CHECKING:
    from onnxq.analysis.abilities import Abilities
    from onnxq.analysis.robustness import Robustness

Tokens = Annotated[
    Path | None, typer.Option(metavar="T.npy", help="Token ids: measures perplexity.", show_default=False)
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="D.npz", help="Inputs, one array an input: measures accuracy.", show_default=False),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Class numbers: an array of the data, by default the one called labels, or a .npy file.",
        show_default=False,
    ),
]
Checks = Annotated[
    bool,
    typer.Option(
        "--checks",
        help="Also check abilities: next token and copying for a language model, noise and attacks for a classifier.",
    ),
]
Attacked = Annotated[
    Path | None,
    typer.Option(
        "--attack",
        metavar="MODEL",
        help="With --checks: the model that attacks are made on, such as the float one; by default MODEL itself.",
        show_default=False,
    ),
]
First = Annotated[Path, typer.Argument(metavar="A", help="The reference.", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B", help="The other model.", show_default=False)]
Common = Annotated[
    Path, typer.Option("--data", metavar="D", help="Token ids (.npy), or inputs (.npz).", show_default=False)
]
Worst = Annotated[int, typer.Option("--worst", min=0, metavar="N", help="Show the N layers furthest apart.")]
Cached = Annotated[
    bool, typer.Option("--cached", help="Read one token a run behind the model's cache, as generating does.")
]
Along = Annotated[bool, typer.Option("--along", help="Show all layers, in the order in which they are computed.")]
Samples = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Use the first N windows or samples.")]


def evaluate(
    model: ModelFile,
    tokens: Tokens = None,
    data: Data = None,
    labels: Labels = None,
    sequence: SequenceLength = 256,
    batch: Batch = 8,
    limit: Limit = None,
    cached: Cached = False,
    accuracy_level: AccuracyLevel = None,
    providers: Providers = None,
    threads: Threads = None,
    checks: Checks = False,
    attacked: Attacked = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity on token ids, or accuracy on labelled data, in onnxruntime.

    Perplexity: windows of --seq tokens that do not overlap; each token but the first of a window is predicted.
    """
    from onnxq.analysis.evaluate import evaluate as measure

    inputs, classes = _labelled(data, labels)
    with progress("evaluating") as advance:
        found = measure(
            model,
            tokens=tokens,
            data=inputs,
            labels=classes,
            sequence=sequence,
            batch=batch,
            limit=limit,
            cached=cached,
            providers=provider_list(providers),
            threads=threads,
            accuracy_level=accuracy_level,
            progress=advance,
        )
        checked: Abilities | Robustness | None = None
        common: dict[str, Any] = {"providers": provider_list(providers), "threads": threads}
        if checks and tokens is not None:
            from onnxq.analysis.abilities import abilities

            checked = abilities(
                model,
                tokens,
                sequence=sequence,
                batch=batch,
                limit=limit,
                accuracy_level=accuracy_level,
                progress=advance,
                **common,
            )
        elif checks:
            from onnxq.analysis.robustness import attack, robustness

            made = attack(attacked or model, _joined(inputs, classes), limit=limit, progress=advance, **common)
            checked = robustness(model, made, accuracy_level=accuracy_level, **common)
    if as_json:
        show_json({"model": str(model), **found.to_dict(), **({"checks": checked.to_dict()} if checked else {})})
    else:
        show(evaluation_shown(found, sequence, checked))


def compare(
    a: First,
    b: Second,
    data: Common,
    sequence: SequenceLength = 256,
    limit: Samples = 8,
    batch: Batch = 1,
    worst: Worst = 10,
    along: Along = False,
    accuracy_level: AccuracyLevel = None,
    providers: Providers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Run two models on the same data and show how far B departs from A, at the outputs and at each layer.

    SQNR is the power of the signal over that of the difference: 6 dB is one bit.
    """
    from onnxq.analysis.compare import compare as measure

    with progress("comparing") as advance:
        found = measure(
            a,
            b,
            data=data,
            sequence=sequence,
            batch=batch,
            limit=limit,
            per_layer=as_json or along or worst > 0,
            providers=provider_list(providers),
            threads=threads,
            accuracy_level=accuracy_level,
            progress=advance,
        )
    if as_json:
        show_json({"a": str(a), "b": str(b), **found.to_dict()})
    else:
        show(*comparison_shown(found, None if along else worst))


def _labelled(data: Path | None, labels: str | None) -> tuple[Any, Any]:
    """Data and labels as `evaluate` takes them: labels by name are an array of the data."""
    if data is None or labels is None or Path(labels).suffix == ".npy" or Path(labels).is_file():
        return data, labels
    from onnxq.statistics.data import read

    arrays = read(data)
    if not isinstance(arrays, Mapping):
        raise DataError(f"'{data}' is one array, without one named '{labels}': give the labels as a .npy file")
    if labels not in arrays:
        raise DataError(f"'{data}' has no array '{labels}': {nearest(labels, arrays)}")
    return {name: array for name, array in arrays.items() if name != labels}, arrays[labels]


def _joined(data: Any, labels: Any) -> Any:
    """Inputs with their labels as one set of arrays, as `attack` takes them."""
    from onnxq.statistics.data import read
    from onnxq.statistics.feeds import LABELS

    arrays = read(data)
    return {**arrays, LABELS: read(labels)} if labels is not None and isinstance(arrays, dict) else arrays
