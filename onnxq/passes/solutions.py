"""`Solutions`: solved weights in a folder, so that they take no memory and an interrupted run goes on where it was.

Beside them lies what was corrected around weights that were finished together.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxq.errors import DataError, UsageError
from onnxq.formats import LEARNED_FORMATS, SCALE_TYPES, get_format, get_scale_type
from onnxq.methods.solution import Outliers, Salient, Solution
from onnxq.model.arrays import read_arrays, write_arrays
from onnxq.model.replacing import output_errors

_RECORD = "run.json"


class Solutions:
    """One file a weight; each appears complete or not at all."""

    def __init__(self, folder: Path, run: Mapping[str, str]) -> None:
        """Open a folder, or make it.

        Args:
            folder: Holds nothing else.
            run: What the solutions depend on; a folder that was made with something else is refused.

        Raises:
            DataError: The folder is another run's.
            OutputError: It cannot be written.
        """
        self._folder = folder
        record = folder / _RECORD
        if folder.exists() and not folder.is_dir():
            raise DataError(f"'{folder}' is a file; solutions are kept in a folder that is empty or new")
        try:
            with output_errors(f"cannot keep solutions in '{folder}'"):
                folder.mkdir(parents=True, exist_ok=True)
                if record.exists():
                    self._check(json.loads(record.read_text("utf-8")), run)
                elif any(folder.iterdir()):
                    raise DataError(f"'{folder}' is not a folder of an interrupted run; name one that is empty or new")
                else:
                    record.write_text(json.dumps(dict(run)), "utf-8")
        except ValueError as error:
            raise DataError(f"'{record}' is damaged; delete the folder to begin anew") from error

    def _check(self, found: object, run: Mapping[str, str]) -> None:
        differing = [what for what, value in run.items() if not isinstance(found, dict) or found.get(what) != value]
        if differing:
            raise DataError(
                f"'{self._folder}' holds a run with another {', '.join(differing)}; name another folder, or delete it"
            )

    def has(self, number: int) -> bool:
        """Whether a weight is solved."""
        return self._path(number).exists()

    def put(self, number: int, solution: Solution | str) -> None:
        """Keep the solution of a weight, or why it stays float.

        Raises:
            OutputError: It cannot be written.
        """
        if isinstance(solution, str):
            self._put(self._path(number), {}, {"reason": solution})
            return
        arrays = {"codes": solution.codes, "scale": _bytes(solution.scale)}
        words = {
            "format": solution.format.name,
            "scale": _type_of(solution.scale),
            "errors": json.dumps([solution.squared_error, solution.squared_norm]),
        }
        if solution.block is not None:
            words["block"] = str(solution.block)
        if solution.tensor_scale is not None:
            words["tensor_scale"] = float(solution.tensor_scale).hex()
        if solution.zero_point is not None:
            arrays["zero_point"] = solution.zero_point
        if solution.format.name in LEARNED_FORMATS:
            arrays["levels"] = solution.format.values
        if solution.low_rank is not None:
            arrays["left"], arrays["right"] = solution.low_rank
        if solution.salient is not None:
            words["integer_scale"] = _type_of(solution.salient.scale)
            arrays |= {
                "mask": solution.salient.mask,
                "integers": solution.salient.codes,
                "integer_scale": _bytes(solution.salient.scale),
                "mean": _bytes(solution.salient.mean),
            }
        if solution.outliers is not None:
            arrays["positions"], arrays["values"] = solution.outliers.positions, solution.outliers.values
        self._put(self._path(number), arrays, words)

    def get(self, number: int) -> Solution | str:
        """The solution of a weight, or why it stays float.

        Raises:
            DataError: The file is damaged.
        """
        try:
            arrays, words = read_arrays(self._path(number))
            if "reason" in words:
                return words["reason"]
            meaning = get_format(words["format"])
            if "levels" in arrays:
                meaning = replace(LEARNED_FORMATS[words["format"]], levels=tuple(arrays["levels"].tolist()))
            salient = None
            if "mask" in arrays:
                scales = _typed(arrays["integer_scale"], words["integer_scale"]), _typed(arrays["mean"], words["scale"])
                salient = Salient(arrays["mask"], arrays["integers"], *scales)
            error, norm = json.loads(words["errors"])
            return Solution(
                meaning,
                int(words["block"]) if "block" in words else None,
                arrays["codes"],
                _typed(arrays["scale"], words["scale"]),
                np.float32(float.fromhex(words["tensor_scale"])) if "tensor_scale" in words else None,
                arrays.get("zero_point"),
                error,
                norm,
                (arrays["left"], arrays["right"]) if "left" in arrays else None,
                Outliers(arrays["positions"], arrays["values"]) if "positions" in arrays else None,
                salient,
            )
        except (ValueError, KeyError, UsageError) as error:
            raise DataError(f"'{self._path(number)}' is damaged; delete it to solve its weight again") from error

    def has_corrected(self, first: int) -> bool:
        """Whether it is known what was corrected around the weights of which this is the first."""
        return self._corrected(first).exists()

    def put_corrected(self, first: int, arrays: Mapping[str, np.ndarray], words: Mapping[str, str]) -> None:
        """Keep what was corrected, in numbers and in words.

        Raises:
            OutputError: It cannot be written.
        """
        self._put(self._corrected(first), arrays, words)

    def get_corrected(self, first: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """What was corrected.

        Raises:
            DataError: The file is damaged.
        """
        try:
            return read_arrays(self._corrected(first))
        except ValueError as error:
            raise DataError(f"'{self._corrected(first)}' is damaged; delete it to correct again") from error

    def _put(self, path: Path, arrays: Mapping[str, np.ndarray], words: Mapping[str, str]) -> None:
        write_arrays(path, arrays, words, f"solutions to '{self._folder}'")

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _corrected(self, first: int) -> Path:
        return self._folder / f"corrected-{first}.safetensors"


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of each number: safetensors knows few types of ml_dtypes."""
    flat = np.ascontiguousarray(array)
    return flat.view(np.uint8).reshape(*flat.shape, flat.itemsize)


def _type_of(scale: np.ndarray) -> str:
    """The recipe does not tell: scales of very small weights are bfloat16 where it says fp16."""
    return next(name for name, each in SCALE_TYPES.items() if each.dtype == scale.dtype)


def _typed(stored: np.ndarray, scale_type: str) -> np.ndarray:
    """The numbers of some bytes."""
    typed: np.ndarray = np.ascontiguousarray(stored).view(get_scale_type(scale_type).dtype)[..., 0]
    return typed
