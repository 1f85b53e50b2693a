"""Steps that rewrite the float model before its weights are quantized: `equalize:` of a recipe.

One model a method, told apart by the key `method`. What a method means stands in docs/equalize.md.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from onnxq.formats import Minifloat
from onnxq.recipes.spec import as_list, known_format

SiteKind = Literal["norm", "value", "gate", "linear"]
SITE_KINDS: tuple[SiteKind, ...] = ("norm", "value", "gate", "linear")

RotationSite = Literal["residual", "value", "online"]
ROTATION_SITES: tuple[RotationSite, ...] = ("residual", "value", "online")
RotationSites = Annotated[tuple[RotationSite, ...], BeforeValidator(as_list), Field(min_length=1)]
Sites = Annotated[tuple[SiteKind, ...], BeforeValidator(as_list), Field(min_length=1)]


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
    alpha: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(as_list), Field(min_length=1)] = (
        0.5,
    )

    def describe(self) -> str:
        """One line for people: `smooth, alpha 0.5`."""
        return f"smooth, alpha {'|'.join(f'{each:g}' for each in self.alpha)}"


class Aweq(Diagonal):
    """AWEQ (arXiv 2311.01305): channels of activations and rows of weights get equal shares of their ranges."""

    method: Literal["aweq"]

    def describe(self) -> str:
        """One line for people."""
        return "aweq"


class Awq(Diagonal):
    """AWQ (arXiv 2306.00978): weights that meet large activations are rounded more exactly."""

    method: Literal["awq"]

    def describe(self) -> str:
        """One line for people."""
        return "awq"


class Shift(Diagonal):
    """LLM-FP4 (arXiv 2310.16836): channels are scaled by powers of two, as far as a small float has octaves.

    Attributes:
        format: What activations will be in: a minifloat.
    """

    method: Literal["shift"]
    format: str = "fp4_e2m1"

    @field_validator("format")
    @classmethod
    def _is_minifloat(cls, name: str) -> str:
        kind = known_format(name)
        if not isinstance(kind, Minifloat):
            raise ValueError(f"{name} has no exponent to shift; give a minifloat, such as fp4_e2m1")
        return name

    def describe(self) -> str:
        """One line for people: `shift, fp4_e2m1`."""
        return f"shift, {self.format}"


class Disassemble(Diagonal):
    """QLLM (arXiv 2310.08041): channels with outliers are split into several smaller ones.

    Attributes:
        ratio: Of channels that may be added.
        bits: What activations will be rounded to; decides how far channels are split.
        assemble: Merge as many similar channels as were added, so that layers keep their width; not exact.
    """

    method: Literal["disassemble"]
    sites: Sites = ("norm", "gate", "linear")
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.05
    bits: Annotated[int, Field(ge=2, le=8)] = 4
    assemble: bool = False

    def describe(self) -> str:
        """One line for people: `disassemble, at most 5 % more channels`."""
        return f"disassemble, at most {self.ratio:.0%} more channels".replace("%", " %") + (
            ", assembled" if self.assemble else ""
        )


class Rotate(BaseModel):
    """QuaRot (arXiv 2404.00456): rotations spread outliers over all channels, and undo each other.

    Attributes:
        sites: The `residual` stream (R1), the `value`s of each attention head (R2), and the input of products behind
            activation functions and gates, by an operator that runs `online` (R4).
        choose: RoSTE (arXiv 2502.09003): only where that lowers the error on calibration data. False: everywhere.
        seed: Of the random signs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["rotate"]
    sites: RotationSites = ROTATION_SITES
    choose: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    def describe(self) -> str:
        """One line for people: `rotate residual, value, online where that helps`."""
        return f"rotate {', '.join(self.sites)}{' where that helps' if self.choose else ''}"


Step = Annotated[Smooth | Aweq | Awq | Shift | Disassemble | Rotate, Field(discriminator="method")]
STEPS: dict[str, type[BaseModel]] = {
    "smooth": Smooth,
    "aweq": Aweq,
    "awq": Awq,
    "shift": Shift,
    "disassemble": Disassemble,
    "rotate": Rotate,
}
"""By what a recipe calls them."""
