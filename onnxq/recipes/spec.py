"""`QuantSpec`: how one weight is quantized."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from onnxq.errors import UsageError
from onnxq.formats import LEARNED_FORMATS, SCALE_TYPES, Format, Integer, get_format, get_scale_type

BINARY = "binary"
Granularity = Literal["tensor", "channel", "group"]
Method = Literal["rtn", "clip", "search", "hqq", "kmeans", "gptq", "erq", "pb-llm"]


def as_list(value: object) -> object:
    """Let a recipe write one item where a list is meant."""
    return [value] if isinstance(value, str | float | int) else value


def known_format(name: str) -> Format:
    """The format of that name; a ValueError, which pydantic puts in its place, where there is none."""
    try:
        return get_format(name)
    except UsageError as error:
        raise ValueError(str(error)) from None


def check_groups(granularity: str, group_size: int | None) -> None:
    """Raise a ValueError unless there is a size of groups where there are groups, and nowhere else."""
    if granularity == "group" and group_size is None:
        raise ValueError("granularity 'group' needs group_size, for instance group_size: 32")
    if granularity != "group" and group_size is not None:
        raise ValueError(f"group_size {group_size} needs granularity: group")


class QuantSpec(BaseModel):
    """Format, granularity, scale type and symmetry of one weight.

    Attributes:
        format: One or more formats; of several, each weight takes the one that leaves the smallest squared error.
        granularity: One scale for the whole tensor, for each output channel, or for each group of `group_size`
            neighbours along the reduction axis.
        group_size: Weights that share a scale; only with `granularity: group`.
        scale: What a scale is stored as; `auto` is the type of the weight itself (fp16 in a float16 model).
        symmetric: False stores a zero point beside each scale; integers only.
        method: How codes are found: `rtn`, `clip`, `search`, `hqq`, `kmeans`, `gptq`, `erq` or `pb-llm`
            (docs/recipes.md).
        low_rank: Rank of two float matrices that give back the most of what rounding took; None for none.
        outliers: Share of the weights, the largest ones, that stand beside the others as sixteen-bit floats; None for
            none.
        salient: Share of the weights that stay in INT8, where the others are binary; only with `method: pb-llm`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]
    granularity: Granularity = "channel"
    group_size: Annotated[int | None, Field(ge=2, le=1 << 20)] = None
    scale: str = "auto"
    symmetric: bool = True
    method: Method = "rtn"
    low_rank: Annotated[int | None, Field(ge=1, le=1 << 16)] = None
    outliers: Annotated[float | None, Field(gt=0, le=0.1)] = None
    salient: Annotated[float | None, Field(gt=0, le=0.5)] = None

    @field_validator("format")
    @classmethod
    def _known_formats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            known_format(name)
        return names

    @field_validator("scale")
    @classmethod
    def _known_scale(cls, name: str) -> str:
        if name != "auto":
            try:
                get_scale_type(name)
            except UsageError as error:
                raise ValueError(f"{error}, auto") from None
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "QuantSpec":
        check_groups(self.granularity, self.group_size)
        if not self.symmetric and not all(isinstance(get_format(name), Integer) for name in self.format):
            raise ValueError("symmetric: false needs an integer format; floats have no zero point")
        if self.symmetric and self.method == "hqq":
            raise ValueError("method hqq moves zero points: set symmetric: false")
        if self.method == "kmeans" and not all(name in LEARNED_FORMATS for name in self.format):
            raise ValueError(f"method kmeans learns tables: format {', '.join(LEARNED_FORMATS)}")
        if self.symmetric and any(name.startswith("uint") for name in self.format):
            raise ValueError("an unsigned format cannot hold negative weights: set symmetric: false")
        if not self.symmetric and self.scale != "auto" and SCALE_TYPES[self.scale].name in ("e8m0", "e4m3"):
            raise ValueError(f"scale {self.scale} needs symmetric: true")
        self._check_binary()
        return self

    def _check_binary(self) -> None:
        """Binary weights are those of PB-LLM, and the other way round."""
        binary = [name == BINARY for name in self.format]
        if not any(binary) and self.method != "pb-llm" and self.salient is None:
            return
        if not all(binary) or self.method != "pb-llm" or self.salient is None:
            raise ValueError("binary weights need a few in INT8: format: binary, method: pb-llm, salient: 0.1")
        if self.outliers is not None:
            raise ValueError("method pb-llm keeps salient weights itself: leave out outliers")
        if self.scale != "auto" and SCALE_TYPES[self.scale].dtype.itemsize == 1:
            raise ValueError(f"method pb-llm has means beside its scales, which {self.scale} cannot hold")

    def describe(self, chosen: str | None = None) -> str:
        """One line for people: `fp4_e2m1, groups of 32, fp16 scales`; of several formats the one that was chosen."""
        where = {"tensor": "one scale", "channel": "per channel", "group": f"groups of {self.group_size}"}
        parts = [chosen or "|".join(self.format), where[self.granularity]]
        if self.scale != "auto":
            parts.append(f"{self.scale} scales")
        if not self.symmetric:
            parts.append("zero points")
        if self.method != "rtn":
            parts.append(self.method)
        if self.low_rank is not None:
            parts.append(f"rank {self.low_rank} beside it")
        if self.outliers is not None:
            parts.append(f"{100 * self.outliers:.3g} % outliers")
        if self.salient is not None:
            parts.append(f"{100 * self.salient:.3g} % in int8")
        return ", ".join(parts)
