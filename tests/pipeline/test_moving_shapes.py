"""moving_shapes: the same samples everywhere, exact truth, and a config that refuses nonsense."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rvseg_jax.core import config as configs
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    KindWeights,
    MovingShapes,
    MovingShapesConfig,
    held_out,
    list_hash,
    sample_hash,
    vocabulary,
)

PINNED = {
    ("train", 0): "0bcaca9aed22eb2034981c1073efedf2d51307bbe8f7d5d21be745587ee45770",
    ("train", 123_456_789): "9e368993d72a4ad4d1e1650c1ac050b31c53c9a9210221c88789fb466460250a",
    ("held_out", 1): "edf1d9052d2a5865b7081be7cedc1ccbb21b988cb09ffacce06a7c0d7c9d67af",
    ("held_out_absent", 2): "248d32fe42c7d1cc6af9cbcbe6443de351d21a8b348a3a897a51965daccd3097",
}
HELD_OUT_HASH = "0e139084bc75932c6f1c627b18589a9df1dd2c8b56b0b87941e493fb51acb331"
ABSENT_HASH = "f8351565e42cdc1e108a2e5fdcc11b31da7c07466df66b29c0ea1c9f1acdca45"


@pytest.mark.parametrize(("split", "index"), PINNED)
def test_samples_are_the_same_on_every_machine(split, index):
    sample = MovingShapes(MovingShapesConfig(split=split))[index]
    assert sample_hash(sample) == PINNED[split, index]


@pytest.mark.slow
def test_the_held_out_list_never_changes():
    assert list_hash(held_out()) == HELD_OUT_HASH
    assert list_hash(held_out(absent=True)) == ABSENT_HASH


def test_a_sample_depends_on_its_index_alone():
    source = MovingShapes(MovingShapesConfig(size=(64, 80), frames=6))
    first = sample_hash(source[5])
    source[3], source[4]
    assert sample_hash(source[5]) == first
    hashes = {sample_hash(source[i]) for i in range(8)}
    assert len(hashes) == 8
    other_seed = MovingShapes(replace(source.config, seed=1))
    other_split = MovingShapes(replace(source.config, split="valid"))
    assert not hashes & {sample_hash(other_seed[i]) for i in range(8)}
    assert not hashes & {sample_hash(other_split[i]) for i in range(8)}


def test_fields_have_the_documented_form():
    for index in range(12):
        s = MovingShapes(MovingShapesConfig(size=(64, 80), frames=6, with_flow=True))[index]
        count = len(s.object_masks)
        assert s.frames.shape == (6, 64, 80, 3) and s.frames.dtype == np.uint8 and s.frames.flags.c_contiguous
        assert s.masks.shape == (6, 64, 80) and s.masks.dtype == bool
        assert s.object_masks.shape == s.amodal_masks.shape == (count, 6, 64, 80)
        assert s.boxes.shape == (count, 6, 4) and s.boxes.dtype == np.int32
        assert s.flow.shape == (5, 64, 80, 2) and s.flow.dtype == np.float32
        assert sorted(s.depth) == list(range(count)) and s.camera.shape == (6, 2)
        assert 3 <= count <= 5 and len(s.frame_names) == 6
        assert set(s.text.split()) | set(s.other_text.split()) <= set(vocabulary())
        assert (s.masks == s.object_masks[list(s.target_ids)].any(axis=0)).all()
        assert bool(s.target_ids) == (s.kind != "absent")
        assert s.other_ids and not set(s.other_ids) & set(s.target_ids)


def test_visible_masks_follow_from_whole_regions_and_depth():
    for index in range(10):
        s = MovingShapes()[index]
        nearest = np.where(s.amodal_masks, s.depth[:, None, None, None], 99).min(axis=0)
        for i, depth in enumerate(s.depth):
            assert (s.object_masks[i] == (s.amodal_masks[i] & (nearest == depth))).all()


def test_every_target_shows_in_every_frame():
    for index in range(40):
        s = MovingShapes()[index]
        share = s.object_masks.sum(axis=(2, 3)) / s.amodal_masks.sum(axis=(2, 3))
        assert share.min() >= 0.25
        if s.target_ids:
            assert share[list(s.target_ids)].min() >= 0.45


def test_boxes_are_tight():
    s = MovingShapes()[3]
    for masks, boxes in zip(s.object_masks, s.boxes, strict=True):
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_the_box_of_an_empty_mask_is_zero():
    from rvseg_jax.input_pipeline.datasets.moving_shapes.render import boxes

    assert (boxes(np.zeros((2, 5, 6), bool)) == 0).all()


def test_masks_lie_where_the_object_is_painted():
    """Inside a plain object every pixel has the object's own colour."""
    from scipy.ndimage import binary_erosion

    seen = 0
    for index in range(20):
        s = MovingShapes()[index]
        for item, masks in zip(s.composition.scene.objects, s.object_masks, strict=True):
            if item.look.texture != "plain":
                continue
            inside = binary_erosion(masks, np.ones((1, 5, 5), bool))
            # Within the rim of another object's soft edge a pixel may be half a colour off: erosion is 2 pixels.
            assert np.abs(s.frames[inside].astype(int) - item.tint).max(initial=0) <= 1
            seen += inside.sum()
    assert seen > 10_000


def test_held_out_clips_are_apart_and_complete():
    source, absent = held_out(), held_out(absent=True)
    assert len(source) == 256 and len(absent) == 128
    kinds = [source[i].kind for i in range(8)]
    assert kinds == ["attribute", "relation", "motion", "several"] * 2
    assert {absent[i].kind for i in range(4)} == {"absent"} and not absent[1].masks.any()
    with pytest.raises(IndexError, match="no sample 256"):
        source[256]


def test_kinds_follow_their_weights():
    config = MovingShapesConfig(size=(64, 64), frames=5, absent=0.0, kinds=KindWeights(1.0, 0.0, 1.0, 0.0))
    kinds = [MovingShapes(config)[i].kind for i in range(60)]
    # 30 expected, standard deviation 3.9.
    assert set(kinds) == {"attribute", "motion"} and 15 <= kinds.count("motion") <= 45


def test_still_images_and_long_clips():
    still = MovingShapesConfig(size=(48, 64), frames=1, kinds=KindWeights(motion=0.0))
    assert MovingShapes(still)[0].frames.shape == (1, 48, 64, 3)
    assert MovingShapes(MovingShapesConfig(size=(48, 48), frames=17))[0].frames.shape == (17, 48, 48, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (32, 96)}, "at least 48"),
        ({"frames": 3}, "do not show a motion"),
        ({"objects": (2, 4)}, "3 to 6"),
        ({"colours": ("red", "mauve")}, "mauve"),
        ({"kinds": KindWeights(0.0, 0.0, 0.0, 0.0)}, "kinds"),
        ({"motions": ("left", "up_left")}, "told apart"),
        ({"absent": 1.5}, "shares"),
        ({"split": "test"}, "held_out"),
    ],
)
def test_config_errors_name_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        MovingShapesConfig(**change)


def test_the_config_can_stand_in_a_recipe():
    config = configs.from_dataclass(MovingShapesConfig)
    config.kinds.motion = 0.5
    config.shapes = ("circle", "star")
    config.size = (64, 64)
    read = configs.to_dataclass(config, MovingShapesConfig)
    assert read == replace(
        MovingShapesConfig(), kinds=KindWeights(motion=0.5), shapes=("circle", "star"), size=(64, 64)
    )


def test_a_small_world_works():
    config = MovingShapesConfig(
        size=(64, 64),
        frames=5,
        shapes=("circle", "square"),
        colours=("red", "blue"),
        textures=("plain",),
        motions=("still", "left", "right"),
    )
    for index in range(30):
        words = set(MovingShapes(config)[index].text.split())
        assert not words & {"star", "green", "striped", "growing", "down"}


def test_the_pipeline_imports_no_device_library():
    code = (
        "import sys, json\n"
        "from rvseg_jax.input_pipeline import loader, mixture, sampling, sources, transforms\n"
        "from rvseg_jax.input_pipeline import checks, command, video_rows\n"
        "from rvseg_jax.input_pipeline.datasets import mevis, moving_shapes, recorded, ref_davis, refcoco, registry\n"
        "moving_shapes.MovingShapes()[0]\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert "numpy" in loaded and not loaded & {"jax", "flax", "torch", "tensorflow", "tensorflow_datasets", "grain"}
