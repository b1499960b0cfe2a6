"""Random integers that are the same on every machine: a counter-based generator and whole numbers only."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BLOCK = 128  # raw words fetched at once; one call of the generator costs as much as about fifty words
_TURN = 1024  # steps of a full circle
_ONE = 1 << 15  # 1.0 in the sine table


def _sine_table() -> np.ndarray:
    angles = np.arange(_TURN) * (2 * np.pi / _TURN)
    # Rounding to 2**-15 hides the last-digit differences between maths libraries.
    return np.rint(np.sin(angles) * _ONE).astype(np.int64)


_SINE = _sine_table()


def sine(angle: int | np.ndarray) -> np.ndarray:
    """Sine in units of 2**-15 of an angle in 1/1024 turns, the same integers on every machine."""
    return _SINE[np.asarray(angle) % _TURN]


def cosine(angle: int | np.ndarray) -> np.ndarray:
    """Cosine in units of 2**-15 of an angle in 1/1024 turns."""
    return _SINE[(np.asarray(angle) + _TURN // 4) % _TURN]


class Draws:
    """A stream of random choices fixed by (seed, stream, index, attempt).

    It reads Philox's raw words, whose values numpy guarantees, instead of `Generator` methods, whose
    algorithms it may change.
    """

    def __init__(self, seed: int, stream: int, index: int, attempt: int = 0) -> None:
        self._bits = np.random.Philox(counter=[0, attempt, index, 0], key=[seed, stream])
        self._pool: list[int] = []

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1."""
        if not self._pool:
            self._pool = (self._bits.random_raw(_BLOCK) >> np.uint64(32)).tolist()
        return (self._pool.pop() * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 draws."""
        return self.below(100) < percent

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, each as likely as any other."""
        return items[self.below(len(items))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One key of `weights`, drawn in proportion to its weight."""
        shares = {key: round(weight * 65536) for key, weight in weights.items()}
        left = self.below(sum(shares.values()))
        for key, share in shares.items():
            left -= share
            if left < 0:
                return key
        raise ValueError(f"weights {dict(weights)} must hold a positive number")

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """`items` in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]

    def array(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """int64 array of whole numbers from `low` to `high`, both included."""
        count = 1
        for length in shape:
            count *= length
        raw = self._bits.random_raw(count) >> np.uint64(32)
        return low + ((raw * np.uint64(high - low + 1)) >> np.uint64(32)).astype(np.int64).reshape(shape)
