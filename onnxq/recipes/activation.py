"""`ActivationSpec`: how what a weight is multiplied with is quantized."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from onnxq.errors import UsageError
from onnxq.formats import Format, Integer, Minifloat, get_format

ActivationGranularity = Literal["tensor", "channel", "token"]
Range = Literal["absmax", "percentile", "entropy", "mse", "dynamic"]


class ActivationSpec(BaseModel):
    """Format, granularity and range of one activation.

    Attributes:
        format: An integer, one of the two FP8 types, `fp6_e3m2`, or a small float of one or two exponent bits.
        granularity: One scale for the whole tensor, for each channel of the axis that the product sums over, or for
            each token: a row along the last axis.
        range: Where the format's largest value lies: `absmax`, the largest magnitude seen on calibration data, or
            less of it (`percentile`, `entropy`, `mse`); `dynamic` measures each input while the model runs. By default
            `dynamic` for tokens and `absmax` for all else.
        percentile: Of the values, in percent, that are within the range; for `range: percentile`.
        clip_ratio: With `granularity: token`, how much of a row's range the format covers; what lies beyond is clipped,
            and all else rounded more finely (QuaRot, arXiv 2404.00456, takes 0.9 at four bits).
        symmetric: False places a zero point where the values lie; integers only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    granularity: ActivationGranularity = "tensor"
    range: Range | None = None
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    clip_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    symmetric: bool = True

    @field_validator("format")
    @classmethod
    def _roundable(cls, name: str) -> str:
        try:
            kind = get_format(name)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if not is_roundable(kind):
            raise ValueError(
                f"{name} cannot hold activations: take an integer, fp8_e4m3, fp8_e5m2, fp6_e3m2, fp6_e2m3 or fp4_e2m1"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "ActivationSpec":
        integer = isinstance(get_format(self.format), Integer)
        if self.granularity == "token" and not self.is_dynamic:
            raise ValueError(f"granularity token has a scale for each row it meets: leave out range: {self.range}")
        if self.granularity != "token" and self.clip_ratio != 1:
            raise ValueError("clip_ratio goes with granularity: token; static scales have range: mse or percentile")
        if self.granularity == "channel" and self.ranging != "absmax":
            raise ValueError(f"granularity channel takes range: absmax, not {self.ranging}")
        if not self.symmetric and not integer:
            raise ValueError("symmetric: false needs an integer format; floats have no zero point")
        if self.symmetric and self.format.startswith("uint"):
            raise ValueError("an unsigned format cannot hold negative values: set symmetric: false")
        dynamic = (self.format, self.symmetric) == ("uint8", False)
        if self.granularity == "tensor" and self.is_dynamic and not dynamic:
            raise ValueError(
                "range: dynamic for a whole tensor needs format: uint8 and symmetric: false (DynamicQuantizeLinear); "
                "granularity: token takes any format"
            )
        return self

    @property
    def ranging(self) -> Range:
        """The range, written out."""
        return self.range or ("dynamic" if self.granularity == "token" else "absmax")

    @property
    def is_dynamic(self) -> bool:
        """Scales are computed while the model runs, and no calibration data is needed."""
        return self.ranging == "dynamic"

    def describe(self) -> str:
        """One line for people: `uint8, one scale, zero points, mse`."""
        where = {"tensor": "one scale", "channel": "per channel", "token": "per token"}
        parts = [self.format, where[self.granularity]]
        if not self.symmetric:
            parts.append("zero points")
        if self.ranging == "percentile":
            parts.append(f"percentile {self.percentile:g}")
        elif self.ranging != "absmax" and self.granularity != "token":
            parts.append(self.ranging)
        if self.clip_ratio != 1:
            parts.append(f"clipped at {self.clip_ratio:g}")
        return ", ".join(parts)


def is_roundable(kind: Format) -> bool:
    """Whether a graph of standard operators can round to a format exactly."""
    if isinstance(kind, Minifloat):
        return kind.onnx_type is not None or (kind.mantissa_bits > 0 and kind.exponent_bits <= 2)
    return isinstance(kind, Integer)
