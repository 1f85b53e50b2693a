"""How help pages look: examples at their end, and no type beside a flag."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from onnxq.cli.console import show


def with_examples(*lines: str) -> type[TyperCommand]:
    """A command whose help ends with examples, one a line."""

    class Command(TyperCommand):
        def get_params(self, ctx: Any) -> list[Any]:
            return _plain_flags(super().get_params(ctx))

        def format_help(self, ctx: Any, formatter: Any) -> None:
            # typer joins or spreads the lines of an epilog, one version so, the next otherwise.
            super().format_help(ctx, formatter)
            from rich.text import Text

            show(Text(" Examples", style="bold"), *(Text(f"   {line}", style="cyan") for line in lines), Text())

    return Command


class Commands(TyperGroup):
    """The group of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As typer's."""
        return _plain_flags(super().get_params(ctx))


def _plain_flags(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return parameters
