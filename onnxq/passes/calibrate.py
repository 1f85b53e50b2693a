"""Which statistics a plan needs, and where in the model they are found."""

from collections.abc import Sequence

from onnxq.methods.solve import SOLVERS
from onnxq.model.operators import domain_of, is_set
from onnxq.model.sites import Site, Weight
from onnxq.passes.plan import Plan
from onnxq.statistics.reductions import Request


def requests(plan: Plan, weights: Sequence[Weight]) -> list[Request]:
    """What the solvers of a plan want to know about activations."""
    wanted = []
    for weight, decision in zip(weights, plan, strict=True):
        if decision.spec is not None and SOLVERS[decision.spec.method].hessian != "no":
            tensor = input_of(weight)
            if tensor is not None:
                wanted.append(Request(tensor, weight.shape[0], ("hessian",)))
    return wanted


def needs_data(plan: Plan) -> list[str]:
    """The methods of a plan that cannot do without calibration data."""
    methods = {each.spec.method for each in plan if each.spec is not None}
    return sorted(name for name in methods if SOLVERS[name].hessian == "needs")


def input_of(weight: Weight) -> str | None:
    """The activation x of x @ weight, by name, where it is a value of the main graph and its last axis is summed over.

    A weight that several nodes read is calibrated on what the first of them reads.
    """
    if weight.in_function or len(weight.shape) != 2 or not weight.sites:
        return None
    site = weight.sites[0]
    value = site.node.inputs[0]
    if not _is_product(site) or value is None or site.node.graph is not weight.source.graph:
        return None
    return value.name


def _is_product(site: Site) -> bool:
    node = site.node
    return (
        domain_of(node) == "" and node.op_type in ("MatMul", "Gemm") and site.index == 1 and not is_set(node, "transA")
    )
