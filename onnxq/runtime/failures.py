"""What onnxruntime's exceptions mean, and the way out of each."""

import re

_OTHER_TARGET = "quantize with --target ort, or install a newer onnxruntime"

# Pattern in the text of onnxruntime 1.31 or 1.32, and what it means; `\g<1>` is what the pattern caught.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        rf"the file is ONNX IR version \g<1> (FLOAT6 and opset 28 need 14) and it reads up to \g<2>; {_OTHER_TARGET}",
    ),
    (
        r"Opset (\d+) is under development.*till opset (\d+)",
        rf"the file is written in opset \g<1> and it knows opsets up to \g<2>; {_OTHER_TARGET}",
    ),
    (
        r"Tensor '(.*?)' does not have valid data type",
        rf"tensor '\g<1>' has a number type it does not know, such as FLOAT6; {_OTHER_TARGET}",
    ),
    (
        # 1.32 knows the name of the type.
        r"Type 'tensor\((float[46]\w+)\)' of input parameter \((.*?)\) of operator",
        rf"tensor '\g<2>' has a number type that this opset does not take, \g<1>; {_OTHER_TARGET}",
    ),
    (
        # All that 1.32 says where it allocates such a tensor.
        r"NOT_IMPLEMENTED : *$",
        rf"the file has tensors of a number type that it cannot hold, such as FLOAT6; {_OTHER_TARGET}",
    ),
    (
        r"(?:Could not find an implementation|Failed to find kernel) for (\w+)\((\d+)\) .*?(?:name |node:)'(.*?)'",
        rf"it has no kernel for \g<1> (opset \g<2>, node '\g<3>') on these number types; {_OTHER_TARGET}",
    ),
    (
        r"(\S+):(\w+)\(-?\d+\) is not a registered function/op",
        r"operator \g<2> of domain \g<1> is unknown to it, and the file has no function that defines it",
    ),
    (
        r"Missing required weight: (\S+) for node",
        r"its MatMulNBits fusion cannot reach weight '\g<1>' from within a subgraph; exclude it from quantization",
    ),
    (r"protobuf parsing failed", r"it is not an ONNX file, or it is cut short"),
    (r"NO_SUCHFILE", r"there is no such file"),
    (
        r"indices element out of data bounds, idx=(-?\d+).*\[-?\d+,(\d+)\]",
        r"index \g<1> is beyond a table whose last row is \g<2>; are these tokens of another model's tokenizer?",
    ),
)

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
# Where in the C++ sources it was thrown: file, line and the signature of the function.
_SOURCE = re.compile(r"^\S+\.(?:cc|h):\d+ .*?\)(?: const)? (?=\S)")


def plain_cause(error: Exception) -> str:
    """The cause of an onnxruntime exception in one line, without onnxruntime's source positions."""
    text = str(error)
    for pattern, meaning in _CAUSES:
        if found := re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return found.expand(meaning)
    return _SOURCE.sub("", _CODE.sub("", text)).strip() or type(error).__name__
