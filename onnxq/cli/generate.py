"""`onnxq generate`: text from a language model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.console import show_json, tell
from onnxq.cli.options import AccuracyLevel, AsJson, ModelFile, Providers, Threads, provider_list

Tokenizer = Annotated[
    Path, typer.Option(metavar="T", help="The model's Hugging Face tokenizer.json.", show_default=False)
]
Prompt = Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to continue.", show_default=False)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="At most so many tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token; 0.7 is a usual choice.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, metavar="K", help="Draw from the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="Draw from the likeliest that together have this.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same text.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeatable.")]


def generate(
    model: ModelFile,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    accuracy_level: AccuracyLevel = None,
    providers: Providers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, to see what a conversion did to a language model.

    The text goes to stdout as it grows; there is no cache of keys and values, so long texts slow down.
    """
    from onnxq.runtime.generate import generate as write

    made = write(
        model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        providers=provider_list(providers),
        threads=threads,
        accuracy_level=accuracy_level,
        on_text=None if as_json else _begin(prompt),
    )
    if as_json:
        show_json(
            {
                "model": str(model),
                "prompt": prompt,
                "text": made.text,
                "tokens": list(made.tokens),
                "prompt_tokens": made.prompt_tokens,
                "finish": made.finish,
                "seconds": made.seconds,
                "tokens_per_second": made.tokens_per_second,
            }
        )
        return
    print(flush=True)
    ended = {"length": "the limit", "stop": "a stop text", "end": "the end of the text"}[made.finish]
    tell(f"{len(made.tokens)} tokens up to {ended}, {made.tokens_per_second:.0f} tokens/s", style="dim")


def _begin(prompt: str) -> Callable[[str], None]:
    """Print the prompt before the first piece of text, and each piece as it comes."""
    waiting = [prompt]

    def write(text: str) -> None:
        sys.stdout.write("".join(waiting) + text)
        sys.stdout.flush()
        waiting.clear()

    return write
