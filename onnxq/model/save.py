"""The guarded door out of onnxq: an output is there completely, or what stood there before is untouched."""

import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.errors import ModelError, OutputError
from onnxq.model import wire
from onnxq.model.copying import copy_file, copy_moves
from onnxq.model.form import Form
from onnxq.model.growing import GrowingFile
from onnxq.model.load import MAXIMUM_MODEL_BYTES, Model, Source, guard
from onnxq.model.mapped import MappedTensor
from onnxq.model.publish import check_output, free_name, publish, unused_data
from onnxq.model.replacing import output_errors
from onnxq.model.staging import MODEL, Move, staging_folder
from onnxq.model.writing import missing_from, write_data, write_model

# Half of what a protobuf message can have: readers copy it, and the rest of the model needs room too.
EMBEDDED_BYTES = 1 << 30

# Called with the bytes written so far, and in all.
Progress = Callable[[int, int], None]


@contextmanager
def stage(output: str | Path, *, force: bool = False, overwrite_of: Path | None = None) -> Iterator["Staging"]:
    """Begin an output: a hidden folder beside it takes the bytes, and disappears at the end.

    Nothing shows at `output` before `Staging.commit` or `Staging.commit_copy`. A folder that an earlier run left
    behind when it was killed is removed.

    Args:
        output: the model file to write; its folder must exist.
        force: replace an output that exists.
        overwrite_of: the input, to say so when the output would replace it.

    Raises:
        OutputError: the output must not or cannot be written.
    """
    output = Path(output).absolute()
    check_output(output, force=force, overwrite_of=overwrite_of)
    with ExitStack() as stack:
        with _output_errors(output):
            folder = stack.enter_context(staging_folder(output.parent))
            staging = Staging(output, folder, force=force)
        stack.callback(staging.close)
        yield staging


class Staging:
    """An output that is being made; get one from `stage`."""

    def __init__(self, output: Path, folder: Path, *, force: bool) -> None:
        self.output = output
        self._folder = folder
        self._force = force
        self._data = GrowingFile(folder / "data")
        self._committed = False

    @property
    def scratch(self) -> Path:
        """A folder for what is needed until the output is there; it disappears with the staging."""
        folder = self._folder / "scratch"
        with _output_errors(self.output):
            folder.mkdir(exist_ok=True)
        return folder

    def append(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], chunks: Iterable[bytes | NDArray[np.generic]]
    ) -> ir.TensorProtocol:
        """Write one tensor to the staging data file, and give a tensor that reads it from there when asked.

        Args:
            name: of the tensor.
            dtype: element type.
            shape: of the tensor, not of the packed bytes.
            chunks: its bytes in `raw_data` order (little-endian, dense for types below a byte), one after the other.

        Raises:
            OutputError: the disk is full, or failed.
            ValueError: the chunks have more or fewer bytes than the tensor, or the output was committed.
        """
        if self._committed:
            raise ValueError("this output was committed before")
        with _output_errors(self.output):
            offset = self._data.align()
        tensor = MappedTensor(self._data, offset, dtype, shape, name=name)
        try:
            for chunk in chunks:
                with _output_errors(self.output):
                    self._data.write(_bytes_of(chunk))
            if (written := self._data.size - offset) != tensor.nbytes:
                raise ValueError(f"tensor '{name}' {dtype} {list(shape)} takes {tensor.nbytes} bytes, not {written}")
        except BaseException:
            # The caller may leave this tensor out and go on.
            self._data.cut(offset)
            raise
        return tensor

    def commit(self, model: Model, *, external: bool | None = None, progress: Progress | None = None) -> Path:
        """Write `model`, verify it, and put it in its place together with its data file.

        Args:
            model: its `ir` is written; it is not changed, and its tensors can be read afterwards.
            external: whether large tensors go to a data file `<output>.data`; by default if the input did so or the
                tensors take more than `EMBEDDED_BYTES`.
            progress: called while bytes are written.

        Returns:
            The output's path.

        Raises:
            OutputError: the disk is full or failed, or the model is not valid; nothing was changed.
        """
        self._begin_commit()
        try:
            form = Form.of(model.ir)
        except ModelError as error:
            raise OutputError(f"cannot write '{self.output}': {error}; nothing was changed") from error
        if external is None:
            external = model.external or form.tensor_bytes > EMBEDDED_BYTES
        report = _Reporter(progress, form.tensor_bytes)
        with _output_errors(self.output):
            moves = self._externalize(form, report) if external else []
            parts = form.parts()
            if (size := wire.length_of(parts)) > MAXIMUM_MODEL_BYTES:
                raise OutputError(
                    f"'{self.output}' would have {size} bytes in one message, and {MAXIMUM_MODEL_BYTES} is the limit; "
                    "write it with external data; nothing was changed"
                )
            self._need_space(size)
            write_model(self._folder / MODEL, parts, report.advance)
            self._keep_mode()
        self._verify()
        self._publish(moves)
        return self.output

    def commit_copy(self, source: Model | Source, *, progress: Progress | None = None) -> Path:
        """Put a byte-identical copy of a model and its external data in place.

        Raises:
            OutputError: the disk is full or failed, or another file has the name of a data file; nothing was changed.
        """
        self._begin_commit()
        checked = source.source if isinstance(source, Model) else source
        if checked is None or checked.file is None:
            raise ValueError("only a model that was loaded from a file can be copied")
        report = _Reporter(progress, checked.size_bytes)
        with _output_errors(self.output):
            self._need_space(checked.size_bytes)
            moves = copy_moves(checked, self.output, self._folder, force=self._force, advance=report.advance)
            copy_file(checked.file, self._folder / MODEL, report.advance)
            self._keep_mode()
        # Data that stood there already is not moved, but belongs to the new model too.
        self._publish(moves, kept=checked.data)
        return self.output

    def close(self) -> None:
        """End the writing; tensors that were appended can still be read."""
        self._data.close()

    def _begin_commit(self) -> None:
        if self._committed:
            raise ValueError("this output was committed before")
        self._committed = True
        check_output(self.output, force=self._force, overwrite_of=None)

    def _externalize(self, form: Form, report: "_Reporter") -> list[Move]:
        self._need_space(sum(tensor.nbytes for tensor in missing_from(self._data, form).values()))
        name = free_name(self.output)
        if not write_data(self._data, form, name, report.advance):
            return []
        self._data.sync()
        staged = self._data.path.rename(self._folder / name)
        return [Move(name, name, staged.stat().st_ino)]

    def _keep_mode(self) -> None:
        """Give the new model the permissions of the one it replaces."""
        if self.output.exists():
            (self._folder / MODEL).chmod(stat.S_IMODE(self.output.stat().st_mode))

    def _verify(self) -> None:
        """Read back what was written, through the same door that will be used to load it."""
        try:
            guard(self._folder / MODEL)
        except ModelError as error:
            reason = str(error).replace(str(self._folder / MODEL), str(self.output))
            reason = reason.replace(str(self._folder), str(self.output.parent))
            raise OutputError(f"the model to write is not valid: {reason}; nothing was changed") from error

    def _publish(self, moves: Sequence[Move], kept: Collection[str] = ()) -> None:
        check_output(self.output, force=self._force, overwrite_of=None)
        obsolete = [name for name in unused_data(self.output) if name not in kept]
        with _output_errors(self.output):
            publish(self._folder, self.output, moves, obsolete)

    def _need_space(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if size_bytes > free:
            raise OutputError(
                f"'{self.output}' needs {size_bytes} more bytes, and the disk has {free} free; nothing was changed"
            )


class _Reporter:
    """Adds up what was written and passes it on."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = total

    def advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


def _output_errors(output: Path) -> AbstractContextManager[None]:
    return output_errors(f"cannot write '{output}'", "; nothing was changed")


def _bytes_of(chunk: bytes | NDArray[np.generic]) -> memoryview:
    # Element types of ml_dtypes have no buffer interface of their own, their bytes do.
    if isinstance(chunk, np.ndarray):
        return np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
    return memoryview(chunk)
