"""Models in a form that a session can open: as bytes, or in a temporary folder where they are large."""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from onnxq.model.form import Form
from onnxq.model.growing import GrowingFile
from onnxq.model.replacing import output_errors
from onnxq.model.writing import write_data, write_model

# A session copies a model that it gets as bytes, and maps one that it gets as a file with external data.
IN_MEMORY_BYTES = 256 << 20


@contextmanager
def opened(form: Form, folder: str | Path | None = None) -> Iterator[bytes | str]:
    """What `onnxruntime.InferenceSession` takes for a serialized model: its bytes, or the path of a temporary file.

    The file is gone when the context ends, so the session must not outlive it.

    Args:
        form: A large one refers to the temporary file afterwards.
        folder: Where a large model is written; by default the system's folder for temporary files.

    Raises:
        OutputError: The temporary file cannot be written.
    """
    if fits_in_memory(form):
        yield form.tobytes()
        return
    with data_folder(form, folder) as made:
        yield write_message(form, made / "model.onnx")


def fits_in_memory(form: Form) -> bool:
    """Whether a serialized model is best opened from its bytes."""
    return form.tensor_bytes <= IN_MEMORY_BYTES


@contextmanager
def data_folder(form: Form, parent: str | Path | None = None) -> Iterator[Path]:
    """A temporary folder with the large tensors of a serialized model, which refers to them from now on.

    Raises:
        OutputError: It cannot be written.
    """
    with temporary_folder(parent) as folder:
        with _output_errors(folder):
            data = GrowingFile(folder / "model.onnx.data")
            try:
                write_data(data, form, data.path.name, lambda _: None)
            finally:
                data.close()
        yield folder


def write_message(form: Form, path: Path) -> str:
    """Write a model beside the data that it refers to, and give the path as a session takes it.

    Raises:
        OutputError: It cannot be written.
    """
    with _output_errors(path.parent):
        write_model(path, form.parts(), lambda _: None)
    return str(path)


@contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder that is gone when the context ends, by default in the system's folder for temporary files.

    Raises:
        OutputError: It cannot be made.
    """
    where = f" in '{parent}'" if parent else "; the environment variable TMPDIR says where"
    with output_errors(f"cannot make a temporary folder{where}"):
        made = tempfile.TemporaryDirectory(prefix="onnxq-", dir=parent)
    with made as folder:
        yield Path(folder)


def _output_errors(folder: Path) -> AbstractContextManager[None]:
    return output_errors(f"cannot write a temporary model in '{folder}'")
