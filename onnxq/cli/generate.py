"""`onnxq generate`: text from a language model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.cli.console import show_json, tell
from onnxq.cli.options import AccuracyLevel, AsJson, ModelFile, Providers, Threads, provider_list
from onnxq.errors import number_of

if TYPE_CHECKING:
    from onnxq.runtime.generate import Generation

Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="T",
        help="The model's Hugging Face tokenizer.json; by default the one beside the model.",
        show_default=False,
    ),
]
Prompts = Annotated[
    list[str],
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="What to continue. Repeatable: several are continued together, as one batch.",
        show_default=False,
    ),
]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="At most so many tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token; 0.7 is a usual choice.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, metavar="K", help="Draw from the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="Draw from the likeliest that together have this.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same text.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeatable.")]


CudaGraph = Annotated[
    bool,
    typer.Option("--cuda-graph", help="Capture a step on CUDA and replay it, where the model's cache stays in place."),
]


def generate(
    model: ModelFile,
    prompt: Prompts,
    tokenizer: Tokenizer = None,
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    accuracy_level: AccuracyLevel = None,
    providers: Providers = None,
    threads: Threads = None,
    cuda_graph: CudaGraph = False,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt with a language model.

    The text goes to stdout as it grows. A model with a cache of keys and values (past_key_values in, present out) reads
    each token once; another one reads the whole text again for each new token, so that long texts slow down.
    """
    from onnxq.runtime.generate import Generator

    with Generator(
        model,
        tokenizer,
        providers=provider_list(providers),
        threads=threads,
        accuracy_level=accuracy_level,
        cuda_graph=cuda_graph,
    ) as generator:
        made = generator.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
            on_text=None if as_json or len(prompt) > 1 else _begin(prompt[0]),
        )
    if as_json:
        found = [_to_dict(model, *each) for each in zip(prompt, made, strict=True)]
        show_json(found[0] if len(found) == 1 else found)
        return
    for text, each in zip(prompt, made, strict=True) if len(prompt) > 1 else ():
        print(f"{text}{each.text}\n")
    if len(prompt) == 1:
        print(flush=True)
    ended = {"length": "the limit", "stop": "a stop text", "end": "the end of the text"}
    finish = ended[made[0].finish] if len(made) == 1 else "their ends"
    tokens = sum(len(each.tokens) for each in made)
    speed = f"{tokens / made[0].seconds:.0f} tokens/s" if made[0].seconds else "none needed"
    again = "" if generator.has_cache else ", reading all of it again for each: the model has no cache"
    tell(f"{number_of(tokens, 'token')} up to {finish}, {speed}{again}", style="dim")


def _to_dict(model: Path, prompt: str, made: "Generation") -> dict[str, Any]:
    return {
        "model": str(model),
        "prompt": prompt,
        "text": made.text,
        "tokens": list(made.tokens),
        "prompt_tokens": made.prompt_tokens,
        "finish": made.finish,
        "seconds": made.seconds,
        "prompt_seconds": made.prompt_seconds,
        "tokens_per_second": made.tokens_per_second,
    }


def _begin(prompt: str) -> Callable[[int, str], None]:
    """Print the prompt before the first piece of text, and each piece as it comes."""
    waiting = [prompt]

    def write(_: int, text: str) -> None:
        sys.stdout.write("".join(waiting) + text)
        sys.stdout.flush()
        waiting.clear()

    return write
