"""COCO's polygons as run-length coded masks, numpy only and equal to pycocotools byte for byte.

An outline is drawn on a grid five times as fine. Where it enters another column of that grid, and that column is the
middle one of a pixel, the mask changes between inside and outside from the outline's row downwards; the changes of
all columns, in column order, are the mask.
Source of the rule: `cocoapi` common/maskApi.c, rleFrPoly.
"""

from collections.abc import Sequence

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.rle import RLE, compress

_FINE = 5
# Outlines come from untrusted JSON: refuse to draw beyond so many points of the fine grid.
_MAX_POINTS = 1 << 24


def to_rle(outline: Sequence[float] | np.ndarray, height: int, width: int) -> RLE:
    """The mask of the pixels inside one closed outline.

    Shapes: outline [2 P], x and y of P points in pixels, y downwards; the mask has [height, width].
    Raises: InputError for anything but pairs of finite numbers, or an outline of absurd length.
    """
    try:
        points = np.asarray(outline, np.float64)
    except (TypeError, ValueError):
        raise InputError("a polygon holds something else than numbers") from None
    if points.ndim != 1 or points.size < 4 or points.size % 2 or not np.isfinite(points).all():
        raise InputError(f"a polygon has {points.size} numbers; expected x and y of at least two points, all finite")
    columns, rows = _outline(np.trunc(points.reshape(-1, 2) * _FINE + 0.5))
    enters = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    x = np.where(columns[enters] < columns[enters - 1], columns[enters], columns[enters] - 1)
    x = (x + 0.5) / _FINE - 0.5
    y = (np.minimum(rows[enters], rows[enters - 1]) + 0.5) / _FINE - 0.5
    y = np.ceil(np.clip(y, 0, height))
    middle = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    changes = (x * height + y)[middle].astype(np.int64)
    places, times = np.unique(changes[changes < height * width], return_counts=True)
    # Two changes at one place are none.
    ends = np.concatenate([[0], places[times % 2 == 1], [height * width]])
    return {"size": [height, width], "counts": compress(np.diff(ends))}


def _outline(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All grid points along the closed line through `points`; both ends of every edge are among them.

    Shapes: points [P, 2], whole numbers; result columns and rows, float64 [M] each.
    """
    start, end = points, np.roll(points, -1, axis=0)
    extent = np.abs(end - start)
    steep = extent[:, 0] < extent[:, 1]
    steps = extent.max(axis=1)
    if steps.sum() + len(steps) > _MAX_POINTS:
        raise InputError(f"a polygon is {int(steps.sum() / _FINE)} pixels long; coordinates are in pixels of the image")
    # Edges are always walked in the same direction, so that two polygons share the pixels of a common edge.
    main = steep.astype(np.int64)
    each = np.arange(len(points))
    backwards = start[each, main] > end[each, main]
    start, end = np.where(backwards[:, None], end, start), np.where(backwards[:, None], start, end)
    slope = (end - start)[each, 1 - main] / np.maximum(steps, 1)
    counts = steps.astype(np.int64) + 1
    edge = np.repeat(each, counts)
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    step = np.where(backwards[edge], steps[edge] - step, step)
    along = start[edge, main[edge]] + step
    across = np.trunc(start[edge, 1 - main[edge]] + slope[edge] * step + 0.5)
    return np.where(steep[edge], across, along), np.where(steep[edge], along, across)
