"""`CacheSpec`: how the cache of keys and values of a language model is quantized."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from onnxq.formats import Integer, Minifloat
from onnxq.recipes.spec import known_format

Granularity = Literal["channel", "token", "smoothed"]
_WORDS = {"channel": "per channel", "token": "per token", "smoothed": "per token, smoothed"}


class CachePart(BaseModel):
    """Keys, or values.

    Attributes:
        format: a signed integer or a minifloat.
        granularity: one scale a channel of a head, from calibration (`channel`); one a token and head, found when the
            token is written (`token`); or that after factors from calibration brought channels to one size
            (`smoothed`). None is what fits the part: `smoothed` for keys, `token` for values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = "int8"
    granularity: Granularity | None = None

    @field_validator("format")
    @classmethod
    def _signed(cls, name: str) -> str:
        kind = known_format(name)
        if not (isinstance(kind, Minifloat) or (isinstance(kind, Integer) and kind.signed)):
            raise ValueError(f"the cache takes signed integers and minifloats, not {name}")
        return name

    @property
    def needs_data(self) -> bool:
        """Whether its scales come from calibration."""
        return self.granularity != "token"

    def describe(self) -> str:
        """For people: `int8 per channel`."""
        return f"{self.format} {_WORDS[self.granularity]}" if self.granularity else self.format


class CacheSpec(BaseModel):
    """Past keys and values; those of the tokens that are just read are used as they are.

    Attributes:
        key: Keys have channels that are always large (KIVI, WKVQuant), so factors of channels come before a scale of
            the token.
        value: Values have none, so one scale a token does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    key: CachePart = CachePart()
    value: CachePart = CachePart()

    @field_validator("key", "value")
    @classmethod
    def _granular(cls, part: CachePart, field: ValidationInfo) -> CachePart:
        fitting: Granularity = "smoothed" if field.field_name == "key" else "token"
        return part if part.granularity else part.model_copy(update={"granularity": fitting})

    @property
    def needs_data(self) -> bool:
        """Whether a part of it needs calibration data."""
        return self.key.needs_data or self.value.needs_data
