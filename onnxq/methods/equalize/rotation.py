"""Rotations that spread outliers over all channels (QuaRot, arXiv 2404.00456, section 3; SpinQuant, arXiv 2405.16406).

A channel that is far larger than its neighbours makes the scale of a token, and costs the others their bits. Behind a
random Hadamard matrix each channel carries an equal share of it. Two rotations that undo each other around a product
leave the product as it is, so the first can go into the weights that made the activation, the second into those that
read it.
"""

from dataclasses import dataclass

import numpy as np

from onnxq.methods.equalize.hadamard import hadamard, has_hadamard

_CHUNK = 1 << 22
"""Elements rotated at a time, in float64."""
_SMALLEST_BLOCK = 16
"""Channels over which an outlier is worth spreading."""
_DRAWS = 64
"""Signs to choose from; the largest entry of the best is about 2 / sqrt(order), of the worst twice as much."""


@dataclass(frozen=True)
class Rotation:
    """x -> xQ for rows x of `size` channels, Q orthogonal: the Kronecker product of two small matrices.

    With x seen as a matrix [a, b], xQ is `left.T @ x @ right`: a + b products a channel, not a * b.

    Attributes:
        left: float64 [a, a], orthogonal.
        right: float64 [b, b], orthogonal.
    """

    left: np.ndarray
    right: np.ndarray

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.left) * len(self.right)

    @property
    def inverse(self) -> "Rotation":
        """The rotation that undoes this one."""
        return Rotation(self.left.T, self.right.T)

    def repeated(self, times: int) -> "Rotation":
        """The rotation of so many stretches of channels, one behind the other, each by this one.

        Raises:
            ValueError: Both matrices are larger than one, and so are the copies.
        """
        if times > 1 and len(self.left) > 1:
            return Rotation(np.eye(times), np.kron(self.left, self.right))
        return Rotation(np.eye(times) if times > 1 else self.left, self.right)

    def matrix(self) -> np.ndarray:
        """Q, float64 [size, size]."""
        return np.asarray(np.kron(self.left, self.right))

    def apply(self, array: np.ndarray, axis: int = -1) -> np.ndarray:
        """Every line along an axis, rotated; float64. Lines that are too short are filled up with zeros."""
        rows = np.moveaxis(array, axis, -1)
        if rows.shape[-1] < self.size:
            rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, self.size - rows.shape[-1])])
        made = np.empty(rows.shape, np.float64)
        flat, out = rows.reshape(-1, self.size), made.reshape(-1, len(self.left), len(self.right))
        step = max(_CHUNK // max(self.size, 1), 1)
        for start in range(0, len(flat), step):
            part = flat[start : start + step].astype(np.float64).reshape(-1, len(self.left), len(self.right))
            out[start : start + step] = self.left.T @ (part @ self.right)
        return np.moveaxis(made, -1, axis)


def rotation(size: int, seed: int, *, keep_mean: bool = False) -> Rotation | None:
    """A random-sign Hadamard rotation of `size` channels; None where their number is odd.

    Where no Hadamard matrix of that size is known, the largest known one that divides it rotates block by block.

    Args:
        size: Number of channels.
        seed: Of the signs.
        keep_mean: Leave the mean of a row as it is, so that a LayerNorm, which subtracts it, commutes with the
            rotation. Entries are then only nearly of equal size.
    """
    generator = np.random.default_rng(seed)
    block = _block(size)
    if block == 1:
        return None
    made = Rotation(*((_mean_kept if keep_mean else _signed)(side, generator) for side in _split(block) or ()))
    return made if block == size else made.repeated(size // block)


def padded_size(size: int) -> int:
    """How many channels to rotate in the place of so many, the others zero: more where there is no good rotation."""
    if _block(size) >= min(size, _SMALLEST_BLOCK):
        return size
    wider = range(-(-size // _SMALLEST_BLOCK) * _SMALLEST_BLOCK, size + size // 8 + 1, _SMALLEST_BLOCK)
    return next((each for each in wider if _split(each)), size)


def _block(size: int) -> int:
    """The largest divisor with a rotation."""
    return max(each for each in range(1, size + 1) if size % each == 0 and _split(each))


def _split(size: int) -> tuple[int, int] | None:
    """Two orders of Hadamard matrices whose product is the size, nearest to each other; None if there are none."""
    pairs = [
        (small, size // small)
        for small in range(1, int(size**0.5) + 1)
        if size % small == 0 and has_hadamard(small) and has_hadamard(size // small)
    ]
    return pairs[-1] if pairs else None


def _signed(order: int, generator: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix out of a Hadamard matrix, its rows with random signs."""
    return np.asarray(generator.choice((-1.0, 1.0), (order, 1)) * hadamard(order) / order**0.5)


def _mean_kept(order: int, generator: np.random.Generator) -> np.ndarray:
    """Such a matrix with (1, ..., 1) reflected back from its image onto itself, the flattest of some."""
    ones, made = np.ones(order), []
    for turn in (_signed(order, generator) for _ in range(_DRAWS)):
        across = ones - ones @ turn
        length = float(across @ across)
        made.append(turn if length < 1e-12 else turn - 2 / length * np.outer(turn @ across, across))
    return min(made, key=lambda each: float(np.abs(each).max()))
