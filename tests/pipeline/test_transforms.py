"""Sizes, resampling, cropping, mirroring and captions."""

import pickle

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_mevis
from rvseg_jax.input_pipeline.sources import ReferringSample
from rvseg_jax.input_pipeline.transforms import (
    DrawClip,
    FlowRVSAugmentation,
    Steps,
    ToExample,
    cropped,
    flipped,
    normalised_caption,
    resize_frames,
    resize_masks,
    short_side_size,
    swap_left_right,
)

SMALL = FlowRVSAugmentation(short=48, longest=83, first_shorts=(40, 50, 60), crop=(38, 60), multiple=8)


def sample_of(height, width, text="the bird on the left"):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    return ReferringSample(frames, frames[..., 0] > 128, text, "video", "0", ("00000", "00001"), "")


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the bright car on the left", "the bright car on the right"),
        ("Left of the RIGHT door", "Right of the LEFT door"),
        ("leftmost cat moving rightwards", "rightmost cat moving leftwards"),
        ("spinning clockwise", "spinning counterclockwise"),
        ("spinning anticlockwise", "spinning clockwise"),
        ("the cleft in the frightened copyright", "the cleft in the frightened copyright"),
        ("left-hand side, right?", "right-hand side, left?"),
    ],
)
def test_left_and_right_are_swapped_as_words(text, mirrored):
    assert swap_left_right(text) == mirrored


def test_swapping_twice_changes_nothing():
    text = "a Left dog left of two rightmost upright men turning counterclockwise"
    assert swap_left_right(swap_left_right(text)) == text


def test_captions_are_normalised():
    assert normalised_caption("  The  Big\tDog \n") == "the big dog"


@pytest.mark.parametrize(
    ("source", "size"),
    [((1080, 1920), (448, 832)), ((480, 854), (448, 832)), ((480, 640), (480, 640)), ((1280, 720), (832, 448))],
)
def test_training_sizes(source, size):
    """The sizes that FlowRVS trains at, from its published table."""
    assert short_side_size(*source, short=480, longest=832, multiple=32) == size


def test_a_size_without_limits():
    assert short_side_size(100, 300, short=400) == (400, 1200)
    with pytest.raises(ValueError, match="below 32 pixels"):
        short_side_size(20, 900, short=480, longest=832, multiple=32)


@pytest.mark.parametrize(("old", "new"), [((48, 64), (31, 90)), ((96, 96), (64, 32)), ((7, 5), (33, 21))])
def test_masks_are_resampled_as_torch_does(torch, old, new):
    masks = np.random.default_rng(1).random((3, *old)) > 0.5
    expected = torch.nn.functional.interpolate(torch.from_numpy(masks)[:, None].float(), size=new, mode="nearest")
    assert (resize_masks(masks, new) == expected[:, 0].numpy().astype(bool)).all()


def test_frames_are_antialiased():
    """Shrinking an 8-pixel checkerboard by 8 averages it; without antialiasing it would stay black and white."""
    board = (np.indices((64, 64)).sum(axis=0) // 4 % 2 * 255).astype(np.uint8)
    frames = np.repeat(board[None, ..., None], 3, axis=-1)
    small = resize_frames(frames, (8, 8))
    assert small.shape == (1, 8, 8, 3) and np.abs(small[0, 1:-1, 1:-1].astype(int) - 127).max() < 12


def test_mirroring_takes_pixels_masks_and_words():
    sample = sample_of(6, 8)
    other = flipped(sample)
    assert (other.frames[:, :, 0] == sample.frames[:, :, -1]).all() and (other.masks[:, :, ::-1] == sample.masks).all()
    assert other.text == "the bird on the right"


def test_a_crop_stays_inside():
    sample = sample_of(6, 8)
    assert (cropped(sample, 1, 2, 3, 4).frames == sample.frames[:, 1:4, 2:6]).all()
    with pytest.raises(ValueError, match=r"3x4 at \(4, 2\)"):
        cropped(sample, 4, 2, 3, 4)


def test_the_augmentation_keeps_frames_and_masks_together():
    """Masks made from the frames' brightness still agree with them after all steps, up to resampling."""
    blocks = np.kron(np.random.default_rng(2).integers(0, 2, (4, 6)), np.ones((16, 16), int)).astype(bool)
    frames = np.repeat(np.where(blocks, 255, 0).astype(np.uint8)[None, ..., None], 3, axis=-1)
    sample = ReferringSample(frames, blocks[None], "The LEFT  one", "v", "0", ("0",), "")
    sizes, texts = set(), set()
    for seed in range(40):
        out = SMALL(sample, np.random.default_rng(seed))
        height, width = out.masks.shape[1:]
        assert out.frames.shape == (1, height, width, 3) and height % 8 == 0 and width % 8 == 0 and width <= 83
        assert ((out.frames[..., 0] > 127) == out.masks).mean() > 0.9
        sizes.add((height, width))
        texts.add(out.text)
    assert len(sizes) > 3 and texts == {"the left one", "the right one"}


def test_published_settings_fit_a_common_video():
    out = FlowRVSAugmentation()(sample_of(480, 854), np.random.default_rng(3))
    assert out.frames.shape[1] % 32 == 0 and max(out.frames.shape[1:3]) <= 832


def test_a_clip_without_target_is_replaced(tmp_path):
    clips = MovingShapes(MovingShapesConfig(size=(48, 48), frames=5, absent=0.5))
    to_mevis(tmp_path, clips, range(12))
    source = Mevis(tmp_path)
    empty = next(source[i] for i in range(len(source)) if not source[i].masks().any())
    kept = DrawClip(3)(empty, np.random.default_rng(0))
    assert kept.text == empty.text and not kept.masks.any() and kept.frames.shape[0] == 3
    drawn = DrawClip(3, others=source)(empty, np.random.default_rng(0))
    assert drawn.masks.any() and (drawn.video, drawn.expression) != (empty.video, empty.expression)
    with pytest.raises(ValueError, match=f"neither {empty.name} nor 4 random others"):
        DrawClip(3, others=[empty], tries=5)(empty, np.random.default_rng(0))


def token_lengths(text):
    return {"tokens": np.array([len(word) for word in text.split()][:3], np.int32)}


def test_the_last_step_gives_arrays():
    step = Steps((SMALL, ToExample(token_lengths)))
    row = step(sample_of(48, 64, "a small cat"), np.random.default_rng(1))
    assert row["tokens"].tolist() == [1, 5, 3] and row["frames"].dtype == np.uint8
    assert row["frames"].flags.c_contiguous and row["masks"].flags.c_contiguous and row["masks"].dtype == bool
    with pytest.raises(ValueError, match="names that are taken"):
        ToExample(lambda text: {"masks": np.zeros(1)})(sample_of(8, 8), np.random.default_rng(0))


def test_steps_can_be_sent_to_workers():
    step = pickle.loads(pickle.dumps(Steps((SMALL, DrawClip(3)))))
    assert step.steps[0] == SMALL
