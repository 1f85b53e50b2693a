"""What of the way weights run costs memory or time that the size of the file does not tell, and the way out."""

from collections import Counter
from collections.abc import Iterator

from onnxq.analysis.execution import Execution, is_tiled
from onnxq.errors import number_of
from onnxq.runtime.native import native_library

_UNPACKED = "unpacked to float when the model is loaded, which saves room on the disk, but no memory and no time"


def cautions(found: Execution) -> Iterator[str]:
    """One sentence for each cause; what is in the layout of a GPU is left out, since it is meant to run there."""
    causes: Counter[str] = Counter()
    for name, count in found.functions.items():
        if not is_tiled(name):
            causes[_cause(name)] += count
    for cause, count in causes.items():
        yield f"{number_of(count, 'weight')} {_UNPACKED}: {cause}"
    if found.dequantized:
        expanded = number_of(found.dequantized, "weight")
        yield f"{expanded} expanded to float again in every run, which takes longer than float weights do"
    if found.rounded:
        rounded = number_of(found.rounded, "activation")
        yield f"{rounded} rounded by functions, which takes time: it shows what accuracy is left, and saves nothing"


def _cause(operator: str) -> str:
    """Why no kernel runs an operator, and what would help."""
    if operator == "AddOutliers":
        return "no kernel knows outliers; leave them out, or spend their bits on a wider format"
    if operator == "PartlyBinary":
        return "no kernel knows what pb-llm stores; formats of two bits or more have one"
    if "CODEBOOK" in operator:
        return "no kernel knows codebooks; nf4 and integers have one"
    if not operator.startswith(("MatMul", "Linear")):
        return "kernels are for matrices of one MatMul or Gemm, not for convolutions, embeddings or shared weights"
    problem = native_library().problem
    return f"onnxq's kernels are not here ({problem})" if problem else "no kernel knows their format"
