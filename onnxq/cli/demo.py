"""`onnxq demo`: the sample language model in FP6, FP4 and INT4 beside the float one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.cli.console import Advance, progress, show, show_json, tell
from onnxq.cli.options import AsJson
from onnxq.errors import OutputError, UsageError, reason

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from onnxq.analysis.evaluate import Evaluation
    from onnxq.runtime.generate import Generation

RECIPES = ("fp6", "fp4", "int4")
_FLOAT = "float"
_FILES = ("model.onnx", "tokenizer.json", "heldout.npy")
_PROMPT = 'def read_lines(path):\n    """'
_NEW_TOKENS = 64
_SEED = 3
_TEMPERATURE = 0.7
_WINDOW = 256
# Every fourth window has nearly the perplexity of all (8.24, and 8.21); the first fourth has not (11.5).
_STEP = 4

Sample = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder with model.onnx, tokenizer.json and heldout.npy.", show_default=False),
]
Keep = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the models in this folder.", show_default=False)]
Full = Annotated[bool, typer.Option("--full", help="Measure on all held-out tokens instead of every fourth window.")]


@dataclass(frozen=True)
class Shown:
    """One model of the demonstration; `bits` a weight that is quantized in the others, and how many there are."""

    name: str
    path: Path
    size_bytes: int
    bits: float
    weights: int
    evaluation: "Evaluation"
    generation: "Generation"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits,
            "weights": self.weights,
            **self.evaluation.to_dict(),
            "text": self.generation.text,
        }


def demo(sample: Sample = None, keep: Keep = None, full: Full = False, as_json: AsJson = False) -> None:
    """Quantize a trained language model to FP6, FP4 and INT4, and show what that costs.

    The sample model, 5.3 million weights trained on Python source, is rounded to nearest without any calibration.
    Perplexity is measured on held-out source; then each model continues the same prompt with the same seed.
    """
    folder = _sample_folder(sample)
    with _work_folder(keep) as work:
        tell(f"Quantizing {folder / 'model.onnx'} to {', '.join(RECIPES)}, and measuring all four", style="dim")
        with progress("starting") as advance:
            shown = [_show_one(name, folder, work, full, advance) for name in (_FLOAT, *RECIPES)]
    if as_json:
        show_json([each.to_dict() for each in shown])
        return
    show(_table(shown), *_caption(shown, full), *_texts(shown))
    if keep:
        tell(f"The models are in {keep}", style="dim")


def _sample_folder(given: Path | None) -> Path:
    """The folder of the sample model: the one given, or that of a clone, around us or around this package."""
    here, clone = Path("samples/code_lm"), Path(__file__).parents[2] / "samples" / "code_lm"
    for folder in (given,) if given else (here, clone):
        if all((folder / name).is_file() for name in _FILES):
            return folder
    raise UsageError(
        f"there is no sample model in '{given or here}' ({', '.join(_FILES)}): it comes with onnxq's repository; run "
        f"this in a clone of it, or give the clone's {here} as --sample DIR"
    )


@contextmanager
def _work_folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="onnxq-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--keep '{keep}': {reason(error)}") from error
    for path in (keep / f"{name}.onnx" for name in RECIPES):
        if path.exists():
            raise OutputError(f"--keep: '{path}' exists; give another folder, or remove it first")
    yield keep


def _show_one(name: str, folder: Path, work: Path, full: bool, advance: Advance) -> Shown:
    from onnxq import api
    from onnxq.analysis.evaluate import evaluate
    from onnxq.report.contents import bits_each
    from onnxq.runtime.generate import generate

    path = folder / "model.onnx"
    if name == _FLOAT:
        entries = api.plan(path, RECIPES[0]).quantized
        size, bits = path.stat().st_size, bits_each(entries, before=True)
    else:
        advance(0, 1, f"{name}: quantizing")
        report = api.quantize(path, name, output=(path := work / f"{name}.onnx"))
        entries = report.quantized
        size, bits = report.output_bytes, bits_each(entries)
    found = evaluate(
        path,
        tokens=_held_out(folder / "heldout.npy", full),
        sequence=_WINDOW,
        progress=lambda done, total: advance(done, total, f"{name}: reading held-out text"),
    )
    advance(1, 1, f"{name}: writing text")
    made = generate(
        path,
        folder / "tokenizer.json",
        _PROMPT,
        max_new_tokens=_NEW_TOKENS,
        temperature=_TEMPERATURE,
        seed=_SEED,
    )
    return Shown(name, path, size, bits, len(entries), found, made)


def _held_out(path: Path, full: bool) -> Any:
    from onnxq.statistics.data import read

    tokens = read(path)
    if full or isinstance(tokens, dict):
        return tokens
    windows = len(tokens) // _WINDOW
    return tokens[: windows * _WINDOW].reshape(windows, _WINDOW)[::_STEP].reshape(-1)


def _table(shown: list[Shown]) -> "Table":
    from onnxq.report.text import size_text, table

    made = table(
        {
            "model": "word",
            "file": "number",
            "of float": "number",
            "bits a weight": "number",
            "perplexity": "number",
            "change": "number",
            "tokens/s": "number",
            "how it ran": "text",
        }
    )
    reference = shown[0]
    for each in shown:
        change = each.evaluation.value / reference.evaluation.value - 1
        made.add_row(
            each.name,
            size_text(each.size_bytes),
            f"{each.size_bytes / reference.size_bytes:.0%}",
            f"{each.bits:.2f}",
            f"{each.evaluation.value:.3f}",
            "" if each is reference else f"{change:+.2%}",
            f"{each.evaluation.tokens_per_second:,.0f}",
            _how(each.evaluation),
        )
    return made


def _how(evaluation: "Evaluation") -> str:
    """The way the quantized weights took, in a few words."""
    way = evaluation.execution
    if way.fused:
        return "onnxruntime's " + " and ".join(
            f"{kind.bits}-bit kernel" + (", activations rounded to int8" if kind.accuracy_level == 4 else "")
            for kind in way.fused
        )
    if way.native:
        return "onnxq's kernel, on packed weights"
    if way.functions:
        return "unpacked to float at load"
    return "dequantized in every run" if way.dequantized else "as exported"


def _caption(shown: list[Shown], full: bool) -> "Iterator[RenderableType]":
    from rich.text import Text

    reference, predicted = shown[0], shown[0].evaluation.tokens
    which = "all of it" if full else "every fourth window; --full takes all"
    yield Text(
        f"\n{shown[1].weights} weights are quantized; the embedding, which is also the output head, stays as it was.\n"
        f"Perplexity (lower is better): {predicted:,} tokens of held-out Python source, {which}.",
        style="dim",
    )
    yield Text(f"\nThe same {reference.generation.prompt_tokens} tokens continued by each, with the same seed:")


def _texts(shown: list[Shown]) -> "Iterator[RenderableType]":
    from rich.text import Text

    for each in shown:
        text = Text.assemble((_PROMPT, "dim"), each.generation.text.rstrip())
        yield Text(f"\n{each.name}", style="bold cyan")
        yield from (Text("  ") + line for line in text.split("\n"))
