"""Hadamard matrices: entries of plus and minus one, rows orthogonal to each other.

Sylvester's construction doubles an order; Paley's two make one of order q + 1 or 2q + 2 from the squares of a finite
field of q elements (Paley 1933, On orthogonal matrices). Together they reach every order that is a power of two times
12, 20, 28, 36, 44, 60, 68, 72, 76, 84, 100, 108, 140, 148 and many more; 92 is the first multiple of four they miss.
"""

from functools import cache
from itertools import product

import numpy as np

_LARGEST_PALEY = 1024


@cache
def has_hadamard(order: int) -> bool:
    """Whether `hadamard` knows a matrix of this order."""
    return order in (1, 2) or _paley(order) is not None or (order > 0 and order % 4 == 0 and has_hadamard(order // 2))


@cache
def hadamard(order: int) -> np.ndarray:
    """A Hadamard matrix, float64 [order, order], read-only.

    Raises:
        ValueError: None is known here; ask `has_hadamard` first.
    """
    if order == 1:
        made = np.ones((1, 1))
    elif order % 2 == 0 and has_hadamard(order // 2):
        half = hadamard(order // 2)
        made = np.block([[half, half], [half, -half]])
    elif (found := _paley(order)) is not None:
        made = (_paley_first if found[2] == 1 else _paley_second)(_residues(*found[:2]))
    else:
        raise ValueError(f"no Hadamard matrix of order {order}")
    made.setflags(write=False)
    return made


def _paley(order: int) -> tuple[int, int, int] | None:
    """Prime, power and which of Paley's constructions gives this order."""
    if order % 4 or order > _LARGEST_PALEY:
        return None
    for elements, remainder, construction in ((order - 1, 3, 1), (order // 2 - 1, 1, 2)):
        if elements % 4 == remainder and (prime_power := _prime_power(elements)):
            return (*prime_power, construction)
    return None


def _prime_power(number: int) -> tuple[int, int] | None:
    prime = next((each for each in range(2, number + 1) if number % each == 0), None)
    if prime is None:
        return None
    power = 0
    while number % prime == 0:
        number, power = number // prime, power + 1
    return (prime, power) if number == 1 else None


def _residues(prime: int, power: int) -> np.ndarray:
    """Jacobsthal's matrix: at [a, b] 1 where a - b is a square of the field, -1 where it is none, 0 on the diagonal."""
    elements = [np.array(each) for each in product(range(prime), repeat=power)]
    place = prime ** np.arange(power)[::-1]
    squares = {int(_times(each, each, prime) @ place) for each in elements[1:]}
    character = np.array([0] + [1 if number in squares else -1 for number in range(1, len(elements))], np.float64)
    table = np.array(elements)
    return np.asarray(character[((table[:, None] - table[None]) % prime) @ place])


def _times(left: np.ndarray, right: np.ndarray, prime: int) -> np.ndarray:
    """The product of two elements of a field: polynomials, the highest coefficient first."""
    modulus = _irreducible(prime, len(left))
    made = np.convolve(left, right) % prime
    for at in range(len(made) - len(left)):
        made[at : at + len(modulus)] = (made[at : at + len(modulus)] - made[at] * modulus) % prime
    return np.asarray(made[len(made) - len(left) :])


@cache
def _irreducible(prime: int, degree: int) -> np.ndarray:
    """The first polynomial with leading coefficient one that no two others multiply to."""
    products = {
        tuple(np.convolve((1, *left), (1, *right)) % prime)
        for split in range(1, degree // 2 + 1)
        for left in product(range(prime), repeat=split)
        for right in product(range(prime), repeat=degree - split)
    }
    rest = product(range(prime), repeat=degree)
    return np.array(next((1, *each) for each in rest if (1, *each) not in products))


def _paley_first(residues: np.ndarray) -> np.ndarray:
    """Of order q + 1, for q of the form 4n + 3."""
    border = np.zeros((len(residues) + 1, len(residues) + 1))
    border[0, 1:], border[1:, 0], border[1:, 1:] = 1, -1, residues
    return np.asarray(border + np.eye(len(border)))


def _paley_second(residues: np.ndarray) -> np.ndarray:
    """Of order 2q + 2, for q of the form 4n + 1."""
    border = np.zeros((len(residues) + 1, len(residues) + 1))
    border[0, 1:], border[1:, 0], border[1:, 1:] = 1, 1, residues
    return np.asarray(np.kron(border, [[1, 1], [1, -1]]) + np.kron(np.eye(len(border)), [[1, -1], [-1, -1]]))
