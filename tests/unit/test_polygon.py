"""COCO's polygons against pycocotools."""

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle
from rvseg_jax.formats.polygon import to_rle


def outlines(kind, count=150):
    """Random outlines that leave the image: with any coordinates, whole, on the fine grid, and with double points."""
    rng = np.random.default_rng(kind)
    for _ in range(count):
        points = rng.uniform(-10, 70, (rng.integers(3, 20), 2))
        if kind:
            points = np.round(points * kind) / kind
        yield np.repeat(points, 2, axis=0) if kind == 2 else points


# pycocotools is built for an older numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", [0, 1, 2, 5])
def test_masks_are_those_of_pycocotools(kind):
    from pycocotools import mask as coco

    rng = np.random.default_rng(9)
    filled = 0
    for points in outlines(kind):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        outline = points.ravel().tolist()
        expected = coco.frPyObjects([outline], height, width)[0]["counts"].decode()
        found = to_rle(outline, height, width)
        assert found == {"size": [height, width], "counts": expected}
        filled += rle.area(found) > 0
    assert filled > 100


def test_a_box_on_whole_coordinates_is_exact():
    mask = rle.decode(to_rle([2, 1, 5, 1, 5, 4, 2, 4], 6, 8))
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([1, 2, 3], "has 3 numbers"),
        ([1, 2, 3, 4, 5], "has 5 numbers"),
        ([0, 0, 1, float("nan")], "all finite"),
        ([[0, 0], [1, 1]], "has 4 numbers"),
        (["a", 0, 1, 1], "something else than numbers"),
        ([0, 0, 1e9, 0, 0, 5], "coordinates are in pixels"),
    ],
)
def test_bad_outlines_are_refused(outline, message):
    with pytest.raises(InputError, match=message):
        to_rle(outline, 10, 10)
