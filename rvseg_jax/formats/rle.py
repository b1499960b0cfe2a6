"""COCO run-length masks, numpy only and equal to pycocotools byte for byte.

A mask is read column by column (Fortran order) as alternating runs of background and foreground, background
first. The compressed string writes every count from the fourth on as its difference to the count two places
before, in groups of five bits, lowest first, each offset by 48 into printable ASCII.
Source of the format: `cocoapi` common/maskApi.c (rleToString, rleFrString, rleToBbox).
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from rvseg_jax.core.errors import InputError

_CHUNK_BITS = 5
_CONTINUES = 0x20
_SIGN = 0x10
# Seven groups of five bits hold any 32-bit count (the type of the reference), and sums stay inside int64.
_MAX_CHUNKS = 7
# Sizes come from untrusted JSON: refuse to allocate beyond 2**30 pixels.
_MAX_PIXELS = 1 << 30


class RLE(TypedDict):
    """One mask: `size` is [H, W], `counts` the compressed string."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> RLE:
    """Encode one mask.

    Shapes: mask [H, W], bool, or any integer type where non-zero is foreground.
    Raises: InputError for another rank, a float mask or an empty image.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0:
        raise InputError(f"a mask to encode has shape {mask.shape}; give one [H, W] with at least one pixel")
    if mask.dtype.kind not in "bui":
        raise InputError(f"a mask to encode has dtype {mask.dtype}; threshold it to bool first")
    return {"size": [int(n) for n in mask.shape], "counts": compress(runs(mask))}


def decode(rle: Mapping[str, object]) -> np.ndarray:
    """Decode one mask from compressed (str or bytes) or plain (list of int) counts.

    Shapes: result [H, W], bool.
    Raises: InputError where size or counts are malformed or do not add up to H * W.
    """
    height, width = _size(rle)
    lengths = counts_of(rle)
    values = np.zeros(len(lengths), dtype=bool)
    values[1::2] = True
    return np.repeat(values, lengths).reshape(width, height).T


def area(rle: Mapping[str, object]) -> int:
    """Number of foreground pixels, without decoding."""
    return int(counts_of(rle)[1::2].sum())


def to_box(rle: Mapping[str, object]) -> tuple[int, int, int, int]:
    """Tight box (x0, y0, x1, y1) in pixels, upper ends exclusive, without decoding; all zeros if empty."""
    height, _ = _size(rle)
    lengths = counts_of(rle)
    ends = np.cumsum(lengths)[1::2]
    starts = ends - lengths[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return 0, 0, 0, 0
    first_column, last_column = starts // height, (ends - 1) // height
    # A run that leaves its column contains the column's last row and the next one's first.
    crosses = first_column != last_column
    top = np.where(crosses, 0, starts % height)
    bottom = np.where(crosses, height - 1, (ends - 1) % height)
    return int(first_column[0]), int(top.min()), int(last_column[-1]) + 1, int(bottom.max()) + 1


def empty(height: int, width: int) -> RLE:
    """The mask of that size without a foreground pixel."""
    return {"size": [int(height), int(width)], "counts": compress(np.array([height * width]))}


def runs(mask: np.ndarray) -> np.ndarray:
    """Run lengths of a mask in column order, background first.

    Shapes: mask [H, W]; result [R], int64, odd places are foreground.
    """
    flat = np.asarray(mask).T.ravel() != 0
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([first, changes, [flat.size]]))


def counts_of(rle: Mapping[str, object]) -> np.ndarray:
    """Run lengths of an encoded mask, checked: int64 [R], none negative, their sum H * W.

    Raises: InputError where they are not.
    """
    height, width = _size(rle)
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        lengths = decompress(counts)
    elif isinstance(counts, (Sequence, np.ndarray)):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "ui"):
            raise InputError("RLE counts are a list of something else than whole numbers")
        lengths = lengths.astype(np.int64)
    else:
        raise InputError(f"RLE counts are {type(counts).__name__}; expected a string or a list of integers")
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise InputError(
            f"RLE counts add up to {int(lengths.sum())} pixels (smallest run {int(lengths.min(initial=0))}), "
            f"but size [{height}, {width}] has {height * width}"
        )
    return lengths


def compress(lengths: np.ndarray) -> str:
    """Write run lengths as the compressed ASCII string.

    Shapes: lengths [R], non-negative integers.
    """
    values = np.asarray(lengths, dtype=np.int64).copy()
    values[3:] -= np.asarray(lengths, dtype=np.int64)[1:-2]
    # n groups hold -16 * 32**(n-1) <= x < 16 * 32**(n-1).
    magnitude = np.where(values < 0, ~values, values)
    chunks = np.ones(values.shape, dtype=np.int64)
    for n in range(1, _MAX_CHUNKS):
        chunks += magnitude >= (_SIGN << _CHUNK_BITS * (n - 1))
    places = np.arange(int(chunks.max(initial=1)))
    digits = (values[:, None] >> (_CHUNK_BITS * places)) & (_CONTINUES - 1)
    digits = np.where(places < chunks[:, None] - 1, digits | _CONTINUES, digits) + 48
    return digits[places < chunks[:, None]].astype(np.uint8).tobytes().decode("ascii")


def decompress(counts: str | bytes) -> np.ndarray:
    """Read run lengths from the compressed string.

    Shapes: result [R], int64 (not checked against a size; see `counts_of`).
    Raises: InputError for a character outside the alphabet or a string that ends inside a number.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError as error:
        raise InputError(f"RLE counts hold {counts[error.start]!r} at {error.start}, which is not ASCII") from None
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not digits.size:
        raise InputError("RLE counts are an empty string")
    outside = (digits < 0) | (digits > 63)
    if outside.any():
        at = int(np.argmax(outside))
        raise InputError(f"RLE counts hold byte {raw[at]} at {at}; expected characters '0' to 'o'")
    last = (digits & _CONTINUES) == 0
    if not last[-1]:
        raise InputError("RLE counts end inside a number: the string is truncated")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    chunks = ends - starts + 1
    if chunks.max() > _MAX_CHUNKS:
        raise InputError("RLE counts hold a number of more than 35 bits")
    place = np.arange(digits.size) - np.repeat(starts, chunks)
    values = np.add.reduceat((digits & (_CONTINUES - 1)) << (_CHUNK_BITS * place), starts)
    values -= np.where(digits[ends] & _SIGN, np.int64(1) << (_CHUNK_BITS * chunks), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _size(rle: Mapping[str, object]) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in size)
    ):
        raise InputError(f"RLE size is {size!r}; expected [height, width] of positive integers")
    if size[0] * size[1] > _MAX_PIXELS:
        raise InputError(f"RLE size is {list(size)}; more than {_MAX_PIXELS} pixels are refused")
    return int(size[0]), int(size[1])
