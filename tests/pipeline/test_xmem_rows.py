"""Clips of XMem's last stages: frames near each other, strides that change with training, and two datasets at once."""

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.formats.davis import write_labels
from rvseg_jax.input_pipeline.loader import make_loader
from rvseg_jax.trackers.data import ClipsConfig
from rvseg_jax.trackers.xmem.rows import JumpRow, SparseVideo, StagedRow
from rvseg_jax.trackers.xmem.training import SparseConfig, XMemTask, XMemTrainingConfig


def test_frames_lie_near_another_one():
    row = JumpRow(frames=4, longest_stride=3)
    drawn = [row._places(50, np.random.default_rng(seed)) for seed in range(200)]
    steps = np.abs(np.diff(drawn, axis=1))
    assert steps.min() == 1 and steps.max() == 3, "no frame twice, none further than the stride"
    backwards = np.mean([places[0] > places[-1] for places in drawn])
    assert 0.35 < backwards < 0.65
    assert {min(places) for places in drawn} >= {0, 1} and max(max(places) for places in drawn) == 49
    # One that is chosen between two others makes no step longer, and a short video gives all that it has.
    for seed in range(5):
        places = row._places(2, np.random.default_rng(seed))
        assert sorted(set(places)) == [0, 1] and len(places) == 4


def folder(root, names, frames):
    """Videos of 40x60 pixels in YouTube-VOS's layout."""
    for name in names:
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / name).mkdir(parents=True)
        for t in range(frames):
            labels = np.zeros((40, 60), np.uint8)
            labels[4:30, 4 + t : 20 + t] = 1
            Image.fromarray(np.full((40, 60, 3), 10 * t, np.uint8)).save(root / "JPEGImages" / name / f"{t:05d}.jpg")
            write_labels(root / "Annotations" / name / f"{t:05d}.png", labels)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "train.txt").write_text("\n".join(names))
    return root


def test_a_sparse_video_scales_the_stride(tmp_path):
    from rvseg_jax.input_pipeline.datasets.davis import Davis

    video = Davis(folder(tmp_path, ["a"], 12), "train", resolution=".").video(0)
    assert len(SparseVideo(video, 5)) == 12
    row = JumpRow(frames=3, objects=1, size=32, longest_stride=10)
    for every, longest in ((5, 2), (100, 1)):
        shades = [row(SparseVideo(video, every), np.random.default_rng(seed))["frames"] for seed in range(25)]
        steps = np.abs(np.diff(np.array(shades)[:, :, 0, 0, 0].astype(float) / 10, axis=1)).round()
        assert steps.max() == longest


class Strides:
    """A row that says what its stride is."""

    def __init__(self, staged):
        self._staged = staged

    def at(self, position):
        longest = self._staged.at(position).longest_stride
        return lambda sample, rng: {"sample": np.int64(sample), "stride": np.int64(longest), "noise": rng.integers(99)}


def test_strides_follow_the_position_in_training_and_resume():
    staged = StagedRow(JumpRow(longest_stride=5), ((6, 10), (14, 3)))
    settings = {"transform": Strides(staged), "batch_size": 2, "seed": 1}
    batches = iter(make_loader(range(5), **settings))
    taken = [next(batches) for _ in range(10)]
    found = np.concatenate([batch["stride"] for batch in taken])
    np.testing.assert_array_equal(found, [5] * 6 + [10] * 8 + [3] * 6)
    plain = iter(
        make_loader(range(5), transform=lambda sample, rng: {"sample": np.int64(sample)}, batch_size=2, seed=1)
    )
    np.testing.assert_array_equal([next(plain)["sample"] for _ in range(10)], [batch["sample"] for batch in taken])
    again = iter(make_loader(range(5), **settings))
    again.set_state({**batches.get_state(), "samples": 12})
    np.testing.assert_array_equal(next(again)["stride"], [10, 10])
    shared = [iter(make_loader(range(5), **settings, process_index=index, process_count=2)) for index in range(2)]
    np.testing.assert_array_equal([next(one)["stride"] for one in shared], [[5, 5], [5, 5]])
    np.testing.assert_array_equal([next(one)["stride"] for one in shared], [[5, 5], [10, 10]])


def test_a_recipe_mixes_both_datasets(tmp_path):
    roots = folder(tmp_path / "davis", ["a", "b"], 6), folder(tmp_path / "other", ["c", "d", "e"], 6)
    config = XMemTrainingConfig(
        clips=ClipsConfig(root=str(roots[0]), resolution=".", frames=3, longest_stride=5),
        sparse=SparseConfig(root=str(roots[1])),
        strides=((8, 10),),
        size=32,
    )
    task = XMemTask(config, precision=FLOAT32)
    source = task.source("train")
    names = [getattr(video, "video", video).name for video in (source[index] for index in range(len(source)))]
    assert sorted(names) == ["a"] * 5 + ["b"] * 5 + ["c", "d", "e"]
    row = task.transform("train").at(0)(source[len(source) - 1], np.random.default_rng(0))
    assert row["frames"].shape == (3, 32, 32, 3) and row["masks"].any()
    assert type(task.source("validation")).__name__ == "TrackingShapes"
    with pytest.raises(ValueError, match="ascending"):
        XMemTrainingConfig(strides=((8, 10), (8, 3)))
    with pytest.raises(ValueError, match="at least 1"):
        SparseConfig(every=0)
