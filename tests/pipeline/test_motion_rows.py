"""Training rows of motion segmentation: which frames are drawn, and what the three views do to them."""

import pickle

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.input_pipeline.motion_rows import RECIPE, MotionRow, drawn_row, mixed
from rvseg_jax.input_pipeline.motion_videos import MotionSample
from rvseg_jax.input_pipeline.motion_views import (
    centre_square,
    jittered,
    mirrored,
    smooth_shift,
    stopped,
    tri_view,
)

SHAPES = GeometricShapes(GeometricShapesConfig(size=(64, 80), frames=8, with_flow=False, fixed=0.0, empty=0.0))


class Counting:
    """A video whose frame t is all of the value t."""

    def __init__(self, length, annotated=None):
        self._length, self.annotated = length, range(length) if annotated is None else annotated

    def __len__(self):
        return self._length

    def sample(self, places):
        values = np.array(places, np.uint8)[:, None, None]
        masks = np.broadcast_to(values % 2 == 1, (len(places), 20, 30))
        frames = np.broadcast_to(values[..., None], (len(places), 20, 30, 3))
        return MotionSample(frames, masks, "counting", tuple(str(place) for place in places))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_places_are_a_stride_apart_and_start_anywhere():
    row = MotionRow(frames=4, size=16, strides=(1, 2, 4))
    drawn = [row.places(Counting(40), rng(seed)) for seed in range(300)]
    steps = {tuple(np.diff(places).tolist()) for places in drawn}
    assert steps == {(stride,) * 3 for stride in (1, 2, 4)}
    starts = {places[0] for places in drawn if places[1] - places[0] == 4}
    assert min(starts) == 0 and max(starts) == 40 - 4 * 4 and len(starts) > 15


def test_a_short_video_repeats_its_last_frame():
    assert MotionRow(frames=6, size=16, strides=(2,)).places(Counting(5), rng()) == [0, 2, 4, 4, 4, 4]
    assert MotionRow(frames=3, size=16).places(Counting(1), rng()) == [0, 0, 0]


def test_only_frames_with_truth_are_drawn():
    known = [2, 5, 6, 11]
    for seed in range(20):
        places = MotionRow(frames=3, size=16).places(Counting(12, known), rng(seed))
        assert places in ([2, 5, 6], [5, 6, 11])
    with pytest.raises(InputError, match="has no truth"):
        MotionRow(frames=3, size=16).places(Counting(4, []), rng())


def test_a_row_has_frames_masks_and_what_is_valid():
    row = MotionRow(frames=3, size=16)(Counting(9), rng())
    assert {name: (array.shape, array.dtype) for name, array in row.items()} == {
        "frames": ((3, 16, 16, 3), np.uint8),
        "masks": ((3, 16, 16), np.bool_),
        "valid": ((3, 16, 16), np.bool_),
    }
    values = row["frames"][:, 0, 0, 0]
    assert np.diff(values).tolist() == [1, 1] and row["valid"].all()
    np.testing.assert_array_equal(row["masks"], np.broadcast_to((values % 2 == 1)[:, None, None], (3, 16, 16)))


def test_frames_and_masks_are_resized_as_pillow_does():
    clip = SHAPES[0]
    row = MotionRow(frames=8, size=48, view="whole")(clip, rng())
    for place in (0, 7):
        image = Image.fromarray(clip.frames[place]).resize((48, 48), Image.Resampling.LANCZOS)
        mask = Image.fromarray(clip.masks[place].astype(np.uint8)).resize((48, 48), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(row["frames"][place], np.asarray(image))
        np.testing.assert_array_equal(row["masks"][place], np.asarray(mask) > 0)
    square = MotionRow(frames=8, size=64)(clip, rng())
    np.testing.assert_array_equal(square["frames"], clip.frames[:, :, 8:72])
    np.testing.assert_array_equal(square["masks"], clip.masks[:, :, 8:72])


def test_void_is_carried_through_the_views():
    clip = SHAPES[0].sample(range(8))
    valid = np.ones(clip.masks.shape, bool)
    valid[:, :, :30] = False
    clip = MotionSample(clip.frames, clip.masks, clip.video, clip.frame_names, valid=valid)
    row = MotionRow(frames=8, size=64)(clip, rng())
    assert not row["valid"][:, :, :22].any() and row["valid"][:, :, 22:].all()
    assert mirrored(clip).valid[:, :, -30:].sum() == 0


def test_three_views_come_in_their_shares():
    clip = SHAPES[1].sample(range(8))
    still = plain = 0
    side = centre_square(clip)
    truths = (side.masks, mirrored(side).masks)
    for seed in range(200):
        view = tri_view(clip, rng(seed))
        assert view.frames.shape == (8, 64, 64, 3) and view.frames.dtype == np.uint8
        if not view.masks.any():
            still += 1
            continue
        flipped = np.array_equal(view.masks, truths[1])
        assert flipped or np.array_equal(view.masks, truths[0])
        plain += np.array_equal(view.frames, (mirrored(side) if flipped else side).frames)
    assert 15 < still < 50  # 15 of 100
    assert 60 < plain < 105  # 50 of 100, of which a fifth is tinted


def test_the_still_view_is_one_frame_under_a_moving_camera():
    clip = SHAPES[2].sample(range(8))
    view = stopped(clip, rng(3))
    assert not view.masks.any() and view.known is None
    first = np.abs(view.frames[0].astype(int) - clip.frames[4]).mean()
    assert first < 1  # before anything has moved
    ends = np.abs(view.frames[-1].astype(int) - view.frames[0]).mean()
    assert ends > 3
    brightness = view.frames.mean(axis=(1, 2, 3))
    assert np.ptp(brightness) / brightness.mean() > 0.05


def test_shifts_are_smooth_and_exact():
    for total, count in ((51, 12), (6, 8), (25, 12), (3, 12), (0, 5), (10, 2)):
        shift = smooth_shift(total, count)
        steps = np.diff(shift)
        assert shift[0] == 0 and shift[-1] == total and len(shift) == count
        assert steps.min() >= min(1, total // (count - 1))
        if total >= 2 * count > 4:
            middle = steps[len(steps) // 2]
            assert middle > steps[0] and middle > steps[-1]
    assert smooth_shift(9, 1).tolist() == [0]


def test_colours_change_alike_in_all_frames():
    frames = np.broadcast_to(SHAPES[3].frames[:1], (4, 64, 80, 3))
    clip = MotionSample(frames, np.zeros((4, 64, 80), bool), "v", tuple("0123"))
    changed = 0
    for seed in range(60):
        found = jittered(clip, rng(seed)).frames
        assert (found == found[:1]).all()
        changed += not np.array_equal(found, clip.frames[:, :, 8:72])
        strong = tri_view(clip, rng(seed)).frames if seed < 15 else found
        assert strong.shape == (4, 64, 64, 3)
    assert 8 < changed < 30  # three in ten


def test_the_recipe_mixes_its_sets_and_goes_to_workers():
    sources = {"hoi4d": [Counting(30)] * 3, "gotmoving": [Counting(30)] * 2}
    source = mixed(sources, frames=3, size=16)
    kinds = [source[index].row.view for index in range(9)]
    assert kinds.count("square") == RECIPE["hoi4d"][1] == 4 and kinds.count("tri_view") == RECIPE["gotmoving"][1] == 5
    row = drawn_row(pickle.loads(pickle.dumps(source))[0], rng())
    assert row["frames"].shape == (3, 16, 16, 3)
    assert sum(weight for _, weight in RECIPE.values()) == 20
    with pytest.raises(InputError, match="the recipe knows got10k"):
        mixed({"kubric": [Counting(3)]})


@pytest.mark.parametrize("change", [{"frames": 0}, {"strides": (0, 1)}, {"size": 0}, {"view": "four"}])
def test_bad_settings(change):
    with pytest.raises(ValueError, match=r"must be at least 1|choose from whole"):
        MotionRow(**change)
