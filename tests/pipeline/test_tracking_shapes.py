"""Clips for trackers: the events that make them hard are there to be seen, and the held-out list is fixed."""

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import (
    EVENTS,
    TrackingShapes,
    TrackingShapesConfig,
    tracking_held_out,
    tracking_list_hash,
)

FIRST_TWELVE = "d7f5810790a762738c4b229cdbca09512cbea61a957e91fa8d16ac64e4b3cc90"


@pytest.fixture(scope="module")
def clips():
    return [tracking_held_out()[index] for index in range(12)]


def test_layout(clips):
    for clip in clips:
        count = len(clip.ids)
        assert clip.frames.shape == (24, 128, 128, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape == (count, 24, 128, 128) and clip.masks.dtype == bool and 2 <= count <= 4
        assert clip.ids == tuple(range(1, count + 1)) and len(clip.frame_names) == 24
        assert clip.masks.sum(axis=0).max() == 1  # a pixel shows one object
        assert clip.masks[:, 0].any(axis=(1, 2)).all()


def test_events_happen(clips):
    assert [clip.kind for clip in clips[:6]] == list(EVENTS) * 2
    for clip in clips:
        area = clip.masks.sum(axis=(2, 3))
        hidden = (area[0] == 0).sum()
        if clip.kind == "full":
            assert 1 <= hidden <= 8
        else:
            assert hidden == 0
        least = area[: 2 if clip.kind == "crossing" else 1].min() / area[0, 0]
        assert least < 0.95
        if clip.kind == "crossing":
            colours = [np.median(clip.frames[0][mask[0]], axis=0) for mask in clip.masks[:2]]
            np.testing.assert_allclose(*colours, atol=40)


def test_objects_travel_and_are_large_enough(clips):
    for clip in clips:
        for mask in clip.masks:
            rows = [np.argwhere(frame).mean(axis=0) for frame in mask if frame.sum() > 50]
            assert np.ptp(rows, axis=0).max() > 12
        # A circle of 16 pixels around it: the largest extent of an object is near its diameter.
        extents = [
            max(np.ptp(np.argwhere(frame), axis=0).max() for frame in mask if frame.any()) for mask in clip.masks
        ]
        assert min(extents) >= 20 and max(extents) <= 64


def test_an_index_is_all_that_a_clip_depends_on():
    source = TrackingShapes(TrackingShapesConfig(size=(96, 96), frames=8))
    first, again, other = source[3], TrackingShapes(source.config)[3], source[4]
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert not np.array_equal(first.frames, other.frames)
    valid = TrackingShapes(TrackingShapesConfig(size=(96, 96), frames=8, split="valid"))
    assert not np.array_equal(first.frames, valid[3].frames)


def test_the_held_out_list_is_fixed():
    assert len(tracking_held_out()) == 128
    assert tracking_list_hash(tracking_held_out(), 12) == FIRST_TWELVE


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": (64, 64)}, "at least 96"),
        ({"frames": 4}, "at least 8"),
        ({"objects": (1, 2)}, "within 2 to 5"),
        ({"pan": 2.0}, "share from 0 to 1"),
        ({"split": "test"}, "choose from train"),
        ({"length": 0}, "must be positive"),
    ],
)
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        TrackingShapesConfig(**change)


def test_no_clip_behind_the_last():
    with pytest.raises(IndexError, match="no sample 128"):
        tracking_held_out()[128]
