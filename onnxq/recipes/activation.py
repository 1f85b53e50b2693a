"""`ActivationSpec`: how what a weight is multiplied with is quantized."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from onnxq.formats import Format, Integer, Minifloat, get_format
from onnxq.recipes.spec import check_groups, known_format

ActivationGranularity = Literal["tensor", "channel", "token", "group"]
_OF_ROWS = ("token", "group")
Range = Literal["absmax", "percentile", "entropy", "mse", "dynamic"]


class ActivationSpec(BaseModel):
    """Format, granularity and range of one activation.

    Attributes:
        format: An integer, one of the two FP8 types, `fp6_e3m2`, or a small float of one or two exponent bits.
        granularity: One scale for the whole tensor, for each channel of the axis that the product sums over, for each
            token: a row along the last axis, or for each group of `group_size` neighbours in such a row.
        group_size: Neighbours that share a scale; only with `granularity: group`.
        scale: `auto`, float32; or `e8m0` for groups, the powers of two of the MX formats.
        range: Where the format's largest value lies: `absmax`, the largest magnitude seen on calibration data, or
            less of it (`percentile`, `entropy`, `mse`); `dynamic` measures each input while the model runs. By default
            `dynamic` for tokens and groups and `absmax` for all else.
        percentile: Of the values, in percent, that are within the range; for `range: percentile`.
        clip_ratio: For tokens and groups, how much of the range the format covers; what lies beyond is clipped, and all
            else rounded more finely (QuaRot, arXiv 2404.00456, takes 0.9 at four bits).
        symmetric: False places a zero point where the values lie; integers only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    granularity: ActivationGranularity = "tensor"
    group_size: Annotated[int | None, Field(ge=2, le=1 << 20)] = None
    scale: Literal["auto", "e8m0"] = "auto"
    range: Range | None = None
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    clip_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    symmetric: bool = True

    @field_validator("format")
    @classmethod
    def _roundable(cls, name: str) -> str:
        kind = known_format(name)
        if not is_roundable(kind):
            raise ValueError(
                f"{name} cannot hold activations: take an integer, fp8_e4m3, fp8_e5m2, fp6_e3m2, fp6_e2m3 or fp4_e2m1"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "ActivationSpec":
        integer = isinstance(get_format(self.format), Integer)
        if self.of_rows and not self.is_dynamic:
            raise ValueError(
                f"granularity {self.granularity} measures what it meets while the model runs: leave out "
                f"range: {self.range}"
            )
        check_groups(self.granularity, self.group_size)
        if self.scale != "auto" and (self.granularity != "group" or not self.symmetric or self.clip_ratio != 1):
            raise ValueError(f"scale {self.scale} goes with granularity: group, without zero points and clip_ratio")
        if not self.of_rows and self.clip_ratio != 1:
            raise ValueError(
                "clip_ratio goes with granularity: token or group; static scales have range: mse or percentile"
            )
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
        return self.range or ("dynamic" if self.of_rows else "absmax")

    @property
    def of_rows(self) -> bool:
        """Scales belong to rows along the last axis, or to groups in them."""
        return self.granularity in _OF_ROWS

    @property
    def is_dynamic(self) -> bool:
        """Scales are computed while the model runs, and no calibration data is needed."""
        return self.ranging == "dynamic"

    def describe(self) -> str:
        """One line for people: `uint8, one scale, zero points, mse`."""
        groups = f"groups of {self.group_size}"
        where = {"tensor": "one scale", "channel": "per channel", "token": "per token", "group": groups}
        parts = [self.format, where[self.granularity]]
        if self.scale != "auto":
            parts.append(f"{self.scale} scales")
        if not self.symmetric:
            parts.append("zero points")
        if self.ranging == "percentile":
            parts.append(f"percentile {self.percentile:g}")
        elif self.ranging != "absmax" and not self.of_rows:
            parts.append(self.ranging)
        if self.clip_ratio != 1:
            parts.append(f"clipped at {self.clip_ratio:g}")
        return ", ".join(parts)


def is_roundable(kind: Format) -> bool:
    """Whether a graph of standard operators can round to a format exactly."""
    if isinstance(kind, Minifloat):
        return kind.onnx_type is not None or (kind.mantissa_bits > 0 and kind.exponent_bits <= 2)
    return isinstance(kind, Integer)
