"""The text of the CUDA kernels, each in one piece."""

import re
from functools import cache
from pathlib import Path

from onnxq.errors import SessionError

_HERE = Path(__file__).parent
# Installed, the sources lie beside the native library; in a checkout, where they are written.
_FOLDERS = (_HERE.parent / "_native" / "cuda", _HERE.parents[2] / "custom_ops" / "cuda")
_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


@cache
def source(name: str) -> str:
    """The text of `<name>.cu` with our own includes put in place.

    CuPy's disk cache knows a program by its text: a header left outside could change without being compiled again.

    Raises:
        SessionError: the file is not part of this installation.
    """
    return _INCLUDE.sub(lambda match: _read(match[1]), _read(f"{name}.cu"))


def _read(file: str) -> str:
    for folder in _FOLDERS:
        if (folder / file).is_file():
            return (folder / file).read_text(encoding="utf-8")
    raise SessionError(f"the CUDA source '{file}' is missing from this installation of onnxq; install it again")
