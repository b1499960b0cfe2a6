"""Training rows of trackers: shapes, which objects, and what real videos with gaps and short clips give."""

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.davis import write_labels
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import TrackingShapes, TrackingShapesConfig
from rvseg_jax.trackers.data import ClipsConfig, source
from rvseg_jax.trackers.rows import ClipRow

SHAPES = TrackingShapesConfig(size=(96, 96), frames=8)


def test_a_row_of_moving_shapes():
    row = ClipRow(frames=4, objects=3, size=96, longest_stride=2)
    video = TrackingShapes(SHAPES)[0]
    rows = [row(video, np.random.default_rng(seed)) for seed in range(8)]
    for one in rows:
        assert one["frames"].shape == (4, 96, 96, 3) and one["frames"].dtype == np.uint8
        assert one["masks"].shape == (3, 4, 96, 96) and one["masks"].dtype == bool
        assert one["masks"][one["valid"], 0].any(axis=(1, 2)).all()
        assert not one["masks"][~one["valid"]].any()
    again = row(video, np.random.default_rng(3))
    for name, value in rows[3].items():
        np.testing.assert_array_equal(again[name], value)
    assert len({one["frames"].tobytes() for one in rows}) > 4
    # Each frame of a row is a frame of the clip or its mirror image, and its masks are those of that frame.
    frames = {video.frames[t].tobytes(): (t, False) for t in range(8)}
    frames |= {video.frames[t][:, ::-1].tobytes(): (t, True) for t in range(8)}
    for one in rows:
        for t, frame in enumerate(one["frames"]):
            place, mirrored = frames[frame.tobytes()]
            truth = video.masks[:, place, :, ::-1] if mirrored else video.masks[:, place]
            for mask in one["masks"][one["valid"], t]:
                assert any(np.array_equal(mask, own) for own in truth)


@pytest.fixture
def root(tmp_path):
    """A video of five frames of 40x60 pixels in DAVIS's layout; object 7 shows in frames 1 to 3 only."""
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "480p" / "a").mkdir(parents=True)
    for t in range(5):
        image = np.zeros((40, 60, 3), np.uint8)
        labels = np.zeros((40, 60), np.uint8)
        labels[4:20, 4 + 4 * t : 20 + 4 * t] = 2
        if 1 <= t <= 3:
            labels[24:36, 30:50] = 7
        image[..., 0] = 20 * labels
        Image.fromarray(image).save(tmp_path / "JPEGImages" / "480p" / "a" / f"{t:05d}.png")
        write_labels(tmp_path / "Annotations" / "480p" / "a" / f"{t:05d}.png", labels)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize("crop", [False, True])
def test_a_row_of_a_dataset_on_disk(root, crop):
    videos = source(ClipsConfig(root=str(root)), "train")
    assert len(videos) == 1 and len(videos[0]) == 5
    row = ClipRow(frames=3, objects=2, size=32, longest_stride=2, crop=crop)
    seen = set()
    for seed in range(12):
        one = row(videos[0], np.random.default_rng(seed))
        assert one["frames"].shape == (3, 32, 32, 3) and one["masks"].shape == (2, 3, 32, 32)
        for mask, valid in zip(one["masks"], one["valid"], strict=True):
            if valid:
                red = one["frames"][0][mask[0]][:, 0]
                assert min(abs(np.median(red) - 40), abs(np.median(red) - 140)) < 12
                seen.add(int(np.median(red)) > 90)
    assert seen == {False, True}


def test_a_video_shorter_than_a_clip_repeats_its_last_frame(root):
    row = ClipRow(frames=9, objects=1, size=32)
    one = row(source(ClipsConfig(root=str(root)), "train")[0], np.random.default_rng(1))
    repeated = sum(np.array_equal(one["frames"][t], one["frames"][t + 1]) for t in range(8))
    assert repeated == 4


def test_a_video_without_objects_is_an_error(root):
    for t in range(5):
        write_labels(root / "Annotations" / "480p" / "a" / f"{t:05d}.png", np.zeros((40, 60), np.uint8))
    with pytest.raises(InputError, match="a shows no object in the first frame of 20 clips"):
        ClipRow(frames=2, size=32)(source(ClipsConfig(root=str(root)), "train")[0], np.random.default_rng(0))


def test_bad_settings():
    with pytest.raises(ValueError, match="each must be at least 1"):
        ClipsConfig(frames=0)
