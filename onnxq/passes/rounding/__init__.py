"""Round activations, after all other steps on the float model and before its weights are solved.

So what weights are calibrated on, and what their errors are measured against, are rounded activations.
"""

from onnxq.passes.rounding.apply import Rounded, round_activations
from onnxq.passes.rounding.plan import ActivationDecision, ActivationPlan, ActivationSite, plan_activations

__all__ = ["ActivationDecision", "ActivationPlan", "ActivationSite", "Rounded", "plan_activations", "round_activations"]
