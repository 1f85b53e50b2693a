"""Constants around rounded weights that are changed so that layers are nearer to those of the float model."""

from onnxq.passes.correct.corrections import Corrected, Corrections, Seen

__all__ = ["Corrected", "Corrections", "Seen"]
