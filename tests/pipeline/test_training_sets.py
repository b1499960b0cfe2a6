"""From every dataset on disk to a clip of one size, as FlowRVS's recipes take them."""

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    to_mevis,
    to_ref_davis,
    to_ref_youtube_vos,
    to_refcoco,
)
from rvseg_jax.input_pipeline.datasets.registry import open_dataset
from rvseg_jax.input_pipeline.mixture import Mixture
from rvseg_jax.systems.flowrvs.data import DatasetsConfig, captions, training_samples, training_source

CLIPS = MovingShapes(MovingShapesConfig(size=(56, 64), frames=5))
BOX = (64, 96)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp("sets")
    to_mevis(top / "mevis/train", CLIPS, range(3))
    to_ref_youtube_vos(top / "ref_youtube_vos", CLIPS, range(2))
    to_ref_davis(top / "ref_davis", CLIPS, range(2), split="train")
    to_refcoco(top / "refcoco", CLIPS, range(2))
    return top


@pytest.mark.parametrize(
    ("name", "frames", "settings"),
    [
        ("mevis", 5, {"augmentation": "video"}),
        ("ref_youtube_vos", 5, {"reversed_share": 1.0, "skip_short": True, "augmentation": "none"}),
        ("ref_davis", 9, {"augmentation": "none"}),
        ("refcoco", 1, {"augmentation": "image"}),
    ],
)
def test_a_recipe_reads_every_dataset(made, name, frames, settings):
    config = DatasetsConfig(((name, str(made / name), "train", 1),), frames=frames, box=BOX, **settings)
    source = training_source(config)
    assert len(source) == len(open_dataset(name, made / name, "train"))  # one anchor a sentence
    out = training_samples(config, source)(source[1], np.random.default_rng(5))
    assert out.frames.shape == (frames, *BOX, 3) and out.masks.shape == (frames, *BOX) and out.valid.shape == BOX
    assert out.valid.any() and out.masks.any() and not out.masks[:, ~out.valid].any()
    assert out.text in set(captions(config, source))
    if config.reversed_share:
        assert list(out.frame_names) == sorted(out.frame_names, reverse=True)


def test_short_videos_are_left_out_or_repeat(made):
    sets = (("mevis", str(made / "mevis"), "train", 1),)
    kept = DatasetsConfig(sets, frames=9, box=BOX, augmentation="none")
    source = training_source(kept)
    out = training_samples(kept, source)(source[0], np.random.default_rng(0))
    assert len(set(out.frame_names)) <= 5 < len(out.frame_names) == 9
    with pytest.raises(ValueError, match="has 9 frames"):
        training_source(DatasetsConfig(sets, frames=9, box=BOX, skip_short=True))


def test_sets_are_mixed_by_weight(made):
    sets = (
        ("ref_davis", str(made / "ref_davis"), "train", 5),
        ("ref_youtube_vos", str(made / "ref_youtube_vos"), "train", 1),
    )
    source = training_source(DatasetsConfig(sets, frames=5, box=BOX))
    assert isinstance(source, Mixture) and [source.locate(i)[0] for i in range(6)] == [0, 0, 0, 0, 0, 1]
