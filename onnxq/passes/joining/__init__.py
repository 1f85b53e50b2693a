"""Products of one input that become one: q, k and v of an attention, gate and up of a feed-forward layer."""

from onnxq.passes.joining.joining import Joining

__all__ = ["Joining"]
