"""Scale the channels of activations, and undo it in the weights that read them: the function stays the same."""

from onnxq.passes.equalize.apply import equalize

__all__ = ["equalize"]
