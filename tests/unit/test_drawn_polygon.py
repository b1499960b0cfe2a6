"""Polygons painted as OpenCV paints them."""

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.drawn_polygon import fill


@pytest.mark.parametrize("beyond", [0, 10, 100], ids=["inside", "across the border", "far outside"])
def test_masks_are_those_of_opencv(beyond):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(beyond)
    filled = 0
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        count = int(rng.integers(1, 12))
        x, y = rng.integers(-beyond, width + beyond, count), rng.integers(-beyond, height + beyond, count)
        points = np.stack([x, y], axis=-1).astype(np.int32)
        expected = np.zeros((height, width), np.uint8)
        # As ReasonSeg's loaders paint: the outline, then what is inside.
        cv2.polylines(expected, points[None], True, 1, 1)
        cv2.fillPoly(expected, points[None], 1)
        np.testing.assert_array_equal(fill(points, height, width), expected > 0)
        filled += expected.sum() > 20
    assert filled > 50


def test_a_triangle_by_hand():
    """The line of slope one half takes its step behind the half; corners and edges belong to the mask."""
    found = fill([[0, 0], [6, 3], [0, 3]], 5, 8)
    rows = ["##......", "####....", "######..", "#######.", "........"]
    assert ["".join(".#"[int(pixel)] for pixel in row) for row in found] == rows


def test_fractions_are_cut_off_and_one_point_is_a_pixel():
    np.testing.assert_array_equal(
        fill([[1.9, 1.9], [4.9, 1.2], [4.1, 3.9]], 6, 6), fill([[1, 1], [4, 1], [4, 3]], 6, 6)
    )
    np.testing.assert_array_equal(np.argwhere(fill([[2, 1]], 3, 4)), [[1, 2]])
    # Truncation goes towards zero: -0.9 is column 0.
    assert fill([[-0.9, 0.0]], 2, 2)[0, 0]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "shape"),
        ([[1, 2, 3]], "shape"),
        ([1, 2], "shape"),
        ([["a", 2]], "something else than points"),
        ([[0, float("nan")]], "pixels of the image"),
        ([[0, 1e9]], "pixels of the image"),
    ],
)
def test_bad_outlines_are_refused(points, message):
    with pytest.raises(InputError, match=message):
        fill(points, 10, 10)
