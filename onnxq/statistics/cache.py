"""Statistics in one safetensors file, and back, if they belong to the model and the data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from onnxq.errors import DataError, NonFiniteError, OutputError
from onnxq.model.arrays import write_arrays
from onnxq.model.digest import digest_of, model_digest
from onnxq.model.load import Model
from onnxq.model.replacing import check_ending
from onnxq.model.versions import package_versions
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Key, Request
from onnxq.statistics.statistics import Statistics

# Raised with every change that gives the content another meaning.
_FORM = "onnxq.statistics.1"
_CHUNK_BYTES = 8 << 20


def collected(model: Model, requests: Sequence[Request], calibration: Calibration) -> Statistics:
    """As `collect`; with a cache, only what the cache does not know is computed, and it knows it afterwards.

    Raises:
        DataError: As `collect`; the cache is damaged, or belongs to another model or other data.
        OutputError: The cache cannot be written.
    """
    if calibration.cache is None:
        return collect(model, requests, calibration)
    path = Path(calibration.cache)
    check_file(path, force=True)
    digests = {"model": model_digest(model), "data": calibration.digest(model)}
    known = None
    if path.exists():
        known, recorded = _read(path)
        for what, digest in digests.items():
            if recorded.get(what) != digest:
                raise DataError(
                    f"the cache '{path}' is of another model or other data: its {what} differs (it was made with "
                    f"{recorded.get('settings')}); name another file, or delete this one"
                )
    missing = requests if known is None else known.missing(requests)
    if known is not None and not missing:
        return known
    found = collect(model, missing, calibration)
    found = found if known is None else known.joined(found)
    _write(path, found, digests | {"settings": _settings(calibration)})
    return found


def save(statistics: Statistics, path: str | Path, model: Model, calibration: Calibration) -> None:
    """Write statistics; the file appears complete or not at all, and replaces one that stands there.

    Args:
        statistics: What was collected.
        path: The file.
        model: What it was collected from.
        calibration: On what it was collected; an iterator leaves no trace in the file.

    Raises:
        OutputError: It cannot be written.
    """
    digests = {"model": model_digest(model), "settings": _settings(calibration)}
    if not calibration.batches(model).once:
        digests["data"] = calibration.digest(model)
    _write(Path(path), statistics, digests)


def load_statistics(path: str | Path, model: Model, requests: Sequence[Request] = ()) -> Statistics:
    """Read statistics of a model.

    Args:
        path: The file.
        model: What they must have been collected from.
        requests: What must be among them.

    Raises:
        DataError: The file is missing or damaged, belongs to another model, or lacks an answer.
    """
    found, recorded = _read(Path(path))
    if recorded.get("model") != model_digest(model):
        raise DataError(f"'{path}' holds the statistics of another model than this; make them with 'onnxq calibrate'")
    if missing := found.missing(requests):
        names = ", ".join(f"'{each.tensor}'" for each in missing[:3])
        raise DataError(
            f"'{path}' lacks statistics of {names}{' and others' if len(missing) > 3 else ''}, which the recipe needs: "
            "make them with 'onnxq calibrate', which collects all there is, or with its --recipe"
        )
    return found


def check_file(path: Path, *endings: str, force: bool) -> None:
    """Find out before the work whether a file can be written, and is called what it is; an OutputError says why not."""
    if endings:
        check_ending(path, *endings)
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder of '{path}' does not exist; create it first")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputError(f"'{path}' is not a regular file; name another")
    if path.exists() and not force:
        raise OutputError(f"'{path}' exists; pass --force to replace it")


def _write(path: Path, statistics: Statistics, recorded: Mapping[str, str]) -> None:
    arrays = {str(number): np.asarray(each, order="C") for number, each in enumerate(statistics.answers.values())}
    metadata = dict(recorded) | {
        "form": _FORM,
        "keys": json.dumps(list(statistics.answers)),
        "samples": str(statistics.samples),
        "synthetic": str(statistics.synthetic),
        "versions": json.dumps(package_versions()),
    }
    metadata["content"] = _content(metadata, arrays)
    write_arrays(path, arrays, metadata, f"the statistics '{path}'")


def _read(path: Path) -> tuple[Statistics, dict[str, str]]:
    """Statistics whose large arrays stay in the file, and what is recorded about them."""
    if not path.is_file():
        raise DataError(f"there is no file of statistics '{path}'")
    try:
        # Checks the header: known types, sizes that fit the shapes, no gap and no overlap, no byte too many.
        with safe_open(path, "numpy") as file:
            recorded = dict(file.metadata() or {})
        if recorded.get("form") != _FORM:
            raise DataError(f"'{path}' holds no statistics that this version of onnxq reads; make them anew")
        keys = [Key(*each) for each in json.loads(recorded["keys"])]
        arrays = _mapped(path)
        if sorted(arrays, key=int) != [str(number) for number in range(len(keys))] or len(set(keys)) != len(keys):
            raise ValueError("keys and arrays do not match")
        content = recorded.pop("content")
        if _content(recorded, {str(number): arrays[str(number)] for number in range(len(keys))}) != content:
            raise ValueError("its content is not what was written")
        statistics = Statistics(
            {key: arrays[str(number)] for number, key in enumerate(keys)},
            int(recorded["samples"]),
            recorded["synthetic"] == "True",
        )
    except DataError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"'{path}' is no file of statistics, or damaged: {error}; make it with 'onnxq calibrate'"
        ) from error
    for key, answer in statistics.answers.items():
        if not np.isfinite(answer).all():
            raise NonFiniteError(f"the {key.kind} of '{key.tensor}' in '{path}' holds NaN or Inf")
    return statistics, recorded


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose header was checked."""
    whole = np.memmap(path, np.uint8, "r")
    start = 8 + int(whole[:8].view("<u8")[0])
    header = json.loads(whole[8:start].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] != "F64":
                raise ValueError(f"an array is {entry['dtype']}, not F64")
            begin, end = entry["data_offsets"]
            # From bytes, since nothing says that an array begins at a multiple of 8.
            arrays[name] = whole[start + begin : start + end].view("<f8").reshape(entry["shape"])
    return arrays


def _content(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    def pieces() -> Iterator[bytes | memoryview]:
        yield json.dumps(sorted(metadata.items())).encode()
        for name, array in arrays.items():
            yield f"{name} {array.shape}".encode()
            flat = array.reshape(-1).view(np.uint8).data
            for begin in range(0, len(flat), _CHUNK_BYTES):
                yield flat[begin : begin + _CHUNK_BYTES]

    return digest_of(pieces())


def _settings(calibration: Calibration) -> str:
    samples = "all" if calibration.samples is None else f"at most {calibration.samples}"
    return f"{samples} samples, windows of {calibration.sequence} tokens, batches of {calibration.batch}"
