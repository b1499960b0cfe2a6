"""Textures of surfaces, and their sampling at any distance without flicker."""

from dataclasses import dataclass

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws

SIDE = 128  # texels of a tile; it repeats
PATTERNS = ("blobs", "stripes", "checks", "bricks", "spots")
_LEVELS = 8  # 128, 64, ..., 1 texels
_OCTAVES = ((32, 5), (16, 3), (8, 2))  # texels between two knots of the noise, and its weight


@dataclass(frozen=True, eq=False)
class Texture:
    """A tile that repeats.

    Attributes:
      levels: float32 [21845], how much of the second colour a texel takes, 0..1: the tile at 128 texels a side, then
        its means over squares of 2, 4, ..., 128 texels.
      colours: float32 [2, 3], the two colours, 0..255.
    """

    levels: np.ndarray
    colours: np.ndarray

    def sample(self, x: np.ndarray, y: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colours of places, averaged over about what a pixel sees.

        Shapes:
          x, y: float32 [...], in tiles. footprint: float32 [...], extent of a pixel in tiles. Returns float32 [3, ...].
        """
        mantissa, exponent = np.frexp(footprint * np.float32(SIDE))
        # log2 between two whole numbers, as a straight line: libraries differ in the last digit of the true one.
        level = np.clip(exponent + mantissa * np.float32(2) - np.float32(2), 0, np.float32(_LEVELS - 1.001))
        low = level.astype(np.int64)
        part = level - low.astype(np.float32)
        fine = self._bilinear(x, y, low)
        weight = fine + (self._bilinear(x, y, low + 1) - fine) * part
        first, second = self.colours
        return np.stack([a + (b - a) * weight for a, b in zip(first, second, strict=True)])

    def _bilinear(self, x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
        side = np.right_shift(SIDE, level)
        start = _STARTS.take(level)
        half = np.float32(0.5)
        scale = side.astype(np.float32)
        column, row = x * scale - half, y * scale - half
        left, top = np.floor(column), np.floor(row)
        column, row = column - left, row - top
        last = side - 1
        x0, y0 = left.astype(np.int64), top.astype(np.int64)
        x1, y1 = (x0 + 1) & last, ((y0 + 1) & last) * side + start
        x0, y0 = x0 & last, (y0 & last) * side + start
        upper = self.levels.take(y0 + x0)
        upper += (self.levels.take(y0 + x1) - upper) * column
        lower = self.levels.take(y1 + x0)
        lower += (self.levels.take(y1 + x1) - lower) * column
        return upper + (lower - upper) * row


_STARTS = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(_LEVELS - 1)]).astype(np.int64)


def draw_texture(draws: Draws, colour: tuple[int, int, int], contrast: int) -> Texture:
    """A texture of two shades.

    Args:
      colour: RGB, 0..255, the mean of its two colours.
      contrast: difference of the two in each channel.
    """
    pattern = _pattern(draws.choice(PATTERNS), draws)
    weight = np.clip((pattern * 3 + _noise(draws) * 2) // 5, 0, 256).astype(np.float32) / np.float32(256)
    levels = [weight]
    while len(levels) < _LEVELS:
        tile = levels[-1]
        rows = tile[::2] + tile[1::2]
        levels.append((rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25))
    sign = draws.choice((-1, 1))
    colours = []
    for side in (-1, 1):
        change = [side * sign * contrast // 2 + draws.between(-12, 12) for _ in colour]
        colours.append([min(max(part + step, 0), 255) for part, step in zip(colour, change, strict=True)])
    return Texture(np.concatenate([level.ravel() for level in levels]), np.array(colours, np.float32))


def _noise(draws: Draws) -> np.ndarray:
    """int64 [SIDE, SIDE], about 0..256: smooth noise of several scales that repeats without a seam."""
    total = np.zeros((SIDE, SIDE), np.int64)
    for period, weight in _OCTAVES:
        count = SIDE // period
        knots = draws.array(0, 256, (count, count))
        total += weight * _stretch(_stretch(knots, period).T, period).T
    # Sums of octaves gather around the middle: spread them.
    return np.clip((total // sum(weight for _, weight in _OCTAVES) - 128) * 2 + 128, 0, 256)


def _stretch(knots: np.ndarray, period: int) -> np.ndarray:
    """Linear interpolation of the rows of `knots`, `period` texels apart, the first following the last."""
    cell, part = np.divmod(np.arange(SIDE), period)
    after = np.roll(knots, -1, axis=0)
    return (knots[cell] * (period - part)[:, None] + after[cell] * part[:, None]) // period


def _pattern(name: str, draws: Draws) -> np.ndarray:
    """int64 [SIDE, SIDE], 0..256."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    period = draws.choice((32, 64))
    if name == "stripes":
        along = rows + columns * draws.choice((-1, 0, 1)) if draws.chance(50) else columns
        return (along // (period // 2) % 2) * 256
    if name == "checks":
        return ((rows // (period // 2) + columns // (period // 2)) % 2) * 256
    if name == "bricks":
        course = rows // (period // 2)
        across = (columns + course % 2 * (period // 2)) % period
        joint = (rows % (period // 2) < period // 8) | (across < period // 8)
        return np.where(joint, 0, 200)
    if name == "spots":
        x, y = columns % period - period // 2, rows % period - period // 2
        return np.where(x * x + y * y < (period * period) // 9, 256, 0)
    return _noise(draws)
