"""Optical flow of moving_shapes against its own pixels and masks."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, map_coordinates

from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig


@pytest.fixture(scope="module")
def samples():
    source = MovingShapes(MovingShapesConfig(with_flow=True, pan=1.0, textures=("plain", "striped")))
    return [source[index] for index in range(12)]


def targets(sample, t, seen):
    """Where the pixels of `seen` lie in frame t + 1, as (rows, columns)."""
    rows, columns = np.nonzero(seen)
    return rows + sample.flow[t, rows, columns, 1], columns + sample.flow[t, rows, columns, 0]


def test_an_object_flows_onto_itself(samples):
    for sample in samples:
        for visible, whole in zip(sample.object_masks, sample.amodal_masks, strict=True):
            for t in range(len(sample.flow)):
                rows, columns = targets(sample, t, visible[t] & binary_erosion(whole[t]))
                inside = whole[t + 1][np.rint(rows).astype(int), np.rint(columns).astype(int)]
                assert inside.all()


def test_colours_move_with_the_flow(samples):
    """Warping the next frame back gives this one, up to the blur of sub-pixel sampling at stripes."""
    errors = []
    for sample in samples:
        for visible in sample.object_masks:
            inner = binary_erosion(visible, np.ones((1, 7, 7), bool))
            for t in range(len(sample.flow)):
                rows, columns = targets(sample, t, inner[t])
                kept = map_coordinates(inner[t + 1].astype(float), [rows, columns], order=1, mode="nearest") > 0.999
                before = sample.frames[t][inner[t]][kept].astype(float)
                warped = [
                    map_coordinates(channel, [rows[kept], columns[kept]], order=1)
                    for channel in np.moveaxis(sample.frames[t + 1].astype(float), -1, 0)
                ]
                after = np.stack(warped, -1)
                errors.append(np.abs(before - after).ravel())
    errors = np.concatenate(errors)
    # The right flow gives a mean of 0.5, one that is half a pixel off 3, a whole pixel 6 (of 255).
    assert len(errors) > 50_000 and errors.mean() < 1


def test_the_background_moves_by_whole_pixels_exactly(samples):
    moved = 0
    for sample in samples:
        # The soft tip of a star reaches up to 3 pixels beyond its mask.
        clear = binary_erosion(~sample.amodal_masks.any(axis=0), np.ones((1, 7, 7), bool))
        for t in range(len(sample.flow)):
            rows, columns = (place.astype(int) for place in targets(sample, t, clear[t]))
            height, width = clear.shape[1:]
            kept = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            kept[kept] = clear[t + 1][rows[kept], columns[kept]]
            assert (sample.frames[t][clear[t]][kept] == sample.frames[t + 1][rows[kept], columns[kept]]).all()
            moved += kept.sum() if sample.flow[t][clear[t]].any() else 0
    assert moved > 50_000


def test_flow_is_made_only_when_asked_for():
    assert MovingShapes()[0].flow is None
