"""Polygons as OpenCV's `fillPoly` draws them, its edges included, numpy only and equal pixel by pixel.

ReasonSeg's truth is painted so. The outline is drawn with Bresenham's lines, from the left to the right; between it,
row by row, lies what an odd number of edges has on its left. Edges are cut at the border of the image before they are
drawn, which moves them by less than a pixel; that is part of the result.
Source of the rule: OpenCV's drawing.cpp (LineIterator, clipLine, fillPoly), with 8 neighbours and whole coordinates.
"""

from collections.abc import Sequence

import numpy as np

from rvseg_jax.core.errors import InputError

_SHIFT = 16  # bits behind the point of positions along a row
_ONE = 1 << _SHIFT
_LIMIT = 1 << 20  # coordinates come from untrusted JSON


def fill(points: Sequence[Sequence[float]] | np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of one closed outline, with all pixels of its line.

    Shapes: points [P, 2], x and y in pixels, cut to whole numbers; result bool [height, width].
    Raises: InputError for anything but points of finite numbers within a million pixels.
    """
    corners = _whole(points)
    mask = np.zeros((height, width), bool)
    edges = []
    for start, end in zip([corners[-1], *corners[:-1]], corners, strict=True):
        edge = _edge(mask, start, end)
        if edge is not None:
            edges.append(edge)
    if edges:
        _fill_between(mask, np.array(edges, np.int64))
    return mask


def _whole(points: Sequence[Sequence[float]] | np.ndarray) -> list[tuple[int, int]]:
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        raise InputError("a polygon holds something else than points of two numbers") from None
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise InputError(f"a polygon has shape {array.shape}; expected a list of points x, y")
    if not np.isfinite(array).all() or np.abs(array).max() > _LIMIT:
        raise InputError(f"a polygon has coordinates beyond {_LIMIT}; they are in pixels of the image")
    return [(int(x), int(y)) for x, y in np.trunc(array)]


def _edge(mask: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Draws an edge, and returns what a row meets of it: first and last row, place at the first, step a row."""
    height, width = mask.shape
    outside = not all(0 <= x < width and 0 <= y < height for x, y in (start, end))
    ends = (*start, *end)
    if outside:
        visible, ends = _clipped(ends, height, width)
        if visible:
            _draw_line(mask, ends)
    else:
        _draw_line(mask, ends)
    if start[1] == end[1]:
        return None
    x0, y0, x1, y1 = ends
    if y0 == y1:  # cut to a single row
        y0, y1 = start[1], end[1]
    step = _quotient((x1 - x0) << _SHIFT, y1 - y0)
    if start[1] < end[1]:
        return start[1], end[1], (x0 << _SHIFT) + (start[1] - y0) * step, step
    return end[1], start[1], (x1 << _SHIFT) + (end[1] - y1) * step, step


def _quotient(one: int, other: int) -> int:
    """Whole quotient, towards zero."""
    found = abs(one) // abs(other)
    return found if (one < 0) == (other < 0) else -found


def _clipped(ends: tuple[int, int, int, int], height: int, width: int) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether a line meets the image, and its ends where it does; rows first, then columns."""
    x1, y1, x2, y2 = ends
    right, bottom = width - 1, height - 1

    def beside(x: int) -> int:
        return (x < 0) + 2 * (x > right)

    def above(y: int) -> int:
        return 4 * (y < 0) + 8 * (y > bottom)

    one, other = beside(x1) + above(y1), beside(x2) + above(y2)
    if one & other == 0 and one | other:
        if one & 12:
            row = 0 if one < 8 else bottom
            x1, y1 = x1 + int((row - y1) * (x2 - x1) / (y2 - y1)), row
            one = beside(x1)
        if other & 12:
            row = 0 if other < 8 else bottom
            x2, y2 = x2 + int((row - y2) * (x2 - x1) / (y2 - y1)), row
            other = beside(x2)
        if one & other == 0 and one | other:
            if one:
                column = 0 if one == 1 else right
                x1, y1, one = column, y1 + int((column - x1) * (y2 - y1) / (x2 - x1)), 0
            if other:
                column = 0 if other == 1 else right
                x2, y2, other = column, y2 + int((column - x2) * (y2 - y1) / (x2 - x1)), 0
    return one | other == 0, (x1, y1, x2, y2)


def _draw_line(mask: np.ndarray, ends: tuple[int, int, int, int]) -> None:
    """Bresenham's line between two pixels of the image, walked towards larger x."""
    x1, y1, x2, y2 = ends
    if x2 < x1:
        x1, y1, x2, y2 = x2, y2, x1, y1
    along, across, sign = x2 - x1, abs(y2 - y1), 1 if y2 >= y1 else -1
    steps = np.arange(max(along, across) + 1)
    longer, shorter = max(along, across, 1), min(along, across)
    # Halves are rounded down: an error of exactly nothing does not take the step.
    moved = -((longer - 2 * shorter * steps) // (2 * longer))
    if across > along:
        mask[y1 + sign * steps, x1 + moved] = True
    else:
        mask[y1 + sign * moved, x1 + steps] = True


def _fill_between(mask: np.ndarray, edges: np.ndarray) -> None:
    """Fills every row between its edges, the first and the second, the third and the fourth, and so on."""
    height, width = mask.shape
    first, last, start, step = edges.T
    for row in range(max(0, int(first.min())), min(height, int(last.max()))):
        active = (first <= row) & (row < last)
        places = np.sort(start[active] + (row - first[active]) * step[active])
        for left, right in zip((places[::2] + _ONE - 1) >> _SHIFT, places[1::2] >> _SHIFT, strict=True):
            if left < width and right >= 0:
                mask[row, max(int(left), 0) : int(right) + 1] = True
