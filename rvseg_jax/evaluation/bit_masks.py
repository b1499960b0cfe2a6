"""Masks with 64 pixels in an integer, so that boundaries and disk dilations of whole frames stay in the cache.

A packed mask is uint64 [ceil(W / 64), H]: pixel (y, x) is bit x % 64 of word [x // 64, y], bits beyond W are 0. Words
of one column of words lie together because a frame has many more rows than words in a row.
"""

import math

import numpy as np

_WORD = 64


def pack(mask: np.ndarray) -> np.ndarray:
    """Packed form of one mask.

    Shapes:
      mask: bool [H, W]. Returns uint64 [ceil(W / 64), H].
    """
    height, width = mask.shape
    octets = np.zeros((height, -(-width // _WORD) * 8), np.uint8)
    octets[:, : -(-width // 8)] = np.packbits(mask, axis=1, bitorder="little")
    return np.ascontiguousarray(octets.view("<u8").T)


def unpack(words: np.ndarray, width: int) -> np.ndarray:
    """The mask of a packed form; the inverse of `pack`.

    Shapes:
      words: uint64 [ceil(W / 64), H]. Returns bool [H, W].
    """
    octets = np.ascontiguousarray(words.T).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=width, bitorder="little").view(bool)


def count(words: np.ndarray) -> int:
    """Number of pixels that are set."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def boundary(words: np.ndarray, width: int) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour.

    A neighbour outside the frame counts as the frame's nearest pixel: upstream's `seg2bmap` has rules of its own for
    the last row, the last column and the corner, and this is what they amount to.

    Shapes:
      words: uint64 [ceil(width / 64), H]. Returns the same.
    """
    right = _towards_left(words, 1)
    right[-1] |= words[-1] & np.uint64(1 << (width - 1) % _WORD)
    across = words ^ right
    edge = across.copy()
    # Where a pixel equals its right and lower neighbours, it differs from the lower-right one if and only if the
    # lower neighbour differs from its own right neighbour.
    edge[:, :-1] |= across[:, 1:]
    edge[:, :-1] |= words[:, :-1] ^ words[:, 1:]
    return edge


def box(words: np.ndarray) -> tuple[slice, slice]:
    """Columns of words and rows outside of which no pixel is set; empty slices for an empty mask.

    Shapes:
      words: uint64 [W / 64, H].
    """
    columns = np.flatnonzero(words.any(axis=1))
    if not columns.size:
        return slice(0, 0), slice(0, 0)
    rows = np.flatnonzero(np.bitwise_or.reduce(words, axis=0))
    return slice(columns[0], columns[-1] + 1), slice(rows[0], rows[-1] + 1)


def dilate(words: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by the disk dx^2 + dy^2 <= radius^2, with background around the frame; exact inside the frame.

    Bits beyond the frame's width may be set in the result.

    Shapes:
      words: uint64 [W / 64, H]. Returns the same.
    """
    grown = np.zeros_like(words)
    row, width = words, 0
    for dy in range(min(radius, words.shape[1] - 1), -1, -1):
        reach = math.isqrt(radius * radius - dy * dy)
        while width < reach:
            # A step of at most width + 1 leaves no gap and needs no bit that an earlier step lost at the border.
            step = min(reach - width, width + 1, _WORD - 1)
            row = row | _towards_left(row, step) | _towards_right(row, step)
            width += step
        grown[:, dy:] |= row[:, : row.shape[1] - dy]
        if dy:
            grown[:, :-dy] |= row[:, dy:]
    return grown


def _towards_left(words: np.ndarray, step: int) -> np.ndarray:
    """Every pixel takes the value of the pixel `step` (1 to 63) to its right."""
    moved = words >> np.uint64(step)
    moved[:-1] |= words[1:] << np.uint64(_WORD - step)
    return moved


def _towards_right(words: np.ndarray, step: int) -> np.ndarray:
    moved = words << np.uint64(step)
    moved[1:] |= words[:-1] >> np.uint64(_WORD - step)
    return moved
