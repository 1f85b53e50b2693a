"""Steps that rewrite the float model before its weights are quantized: `equalize:` of a recipe.

One model a method, told apart by the key `method`. What a method means stands in docs/equalize.md.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SiteKind = Literal["norm", "value", "gate", "linear"]
SITE_KINDS: tuple[SiteKind, ...] = ("norm", "value", "gate", "linear")


def _as_tuple(value: object) -> object:
    """Let a recipe write one item where a list is meant."""
    return value if isinstance(value, list | tuple) else (value,)


Sites = Annotated[tuple[SiteKind, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Diagonal(BaseModel):
    """What all steps have in common that scale the channels of activations.

    Attributes:
        sites: Where: behind a `norm`, between `value` and output projection of attention, on the `gate`d product of a
            feed-forward layer, and on what comes out of another `linear` operator.
        insert: Scale with a Mul where no producer can take the scales; False leaves such activations alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: Sites = SITE_KINDS
    insert: bool = False


class Smooth(Diagonal):
    """SmoothQuant (arXiv 2211.10438): part of the range of activations moves into the weights.

    Attributes:
        alpha: How much of it; of several, each activation takes the one that promises the smallest error.
    """

    method: Literal["smooth"]
    alpha: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_as_tuple), Field(min_length=1)
    ] = (0.5,)

    def describe(self) -> str:
        """One line for people: `smooth, alpha 0.5`."""
        return f"smooth, alpha {'|'.join(f'{each:g}' for each in self.alpha)}"


Step = Annotated[Smooth, Field(discriminator="method")]
STEPS: dict[str, type[BaseModel]] = {"smooth": Smooth}
"""By what a recipe calls them."""
