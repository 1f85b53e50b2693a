"""What a code means: number formats, scale types and bit packing. numpy and ml_dtypes only."""

from onnxq.formats.base import Format
from onnxq.formats.catalog import ALL_FORMATS, LEARNED_FORMATS, NAMED_FORMATS, get_format
from onnxq.formats.codebook import Codebook
from onnxq.formats.integer import Integer
from onnxq.formats.minifloat import Minifloat
from onnxq.formats.packing import pack, packed_bytes, unpack
from onnxq.formats.scales import SCALE_TYPES, ScaleType, get_scale_type

__all__ = [
    "ALL_FORMATS",
    "LEARNED_FORMATS",
    "NAMED_FORMATS",
    "SCALE_TYPES",
    "Codebook",
    "Format",
    "Integer",
    "Minifloat",
    "ScaleType",
    "get_format",
    "get_scale_type",
    "pack",
    "packed_bytes",
    "unpack",
]
