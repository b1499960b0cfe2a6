"""Sizes, resampling, cropping, mirroring and captions."""

import pickle

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.captions import normalised_caption, swap_left_right, swap_letters
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_mevis
from rvseg_jax.input_pipeline.resampling import cropped, resize_frames, resize_masks, short_side_size
from rvseg_jax.input_pipeline.sampling import LongEnough
from rvseg_jax.input_pipeline.sources import ReferringSample
from rvseg_jax.input_pipeline.transforms import (
    DrawClip,
    FlowRVSAugmentation,
    FlowRVSImageAugmentation,
    NormalisedCaption,
    PadToBox,
    PlayBackwards,
    Steps,
    ToExample,
    flipped,
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


@pytest.mark.parametrize("text", ["the bright cleft right left", "leftright", "Left RIGHT"])
def test_letters_are_swapped_as_published(text):
    """Upstream's three replacements in turn."""
    assert swap_letters(text) == text.replace("left", "[TMP]").replace("right", "left").replace("[TMP]", "right")


def test_images_are_augmented_as_in_pre_training():
    """Sizes of 400 draws against a restatement of the published rule; captions by option."""
    sizes, texts = set(), {}
    for seed in range(200):
        out = FlowRVSImageAugmentation()(sample_of(60, 90, "the  Bright dog left"), np.random.default_rng(seed))
        sizes.add(out.frames.shape[1:3])
        texts.setdefault(out.text, []).append(out)
    assert (
        set(texts) == {"the bright dog left", "the bright dog right"} and 70 < len(texts["the bright dog left"]) < 130
    )
    whole = {short_side_size(60, 90, short=short, longest=800) for short in FlowRVSImageAugmentation.shorts}
    rounded = {tuple(-(-side // 16) * 16 for side in size) for size in whole}
    assert rounded <= sizes and len(sizes - rounded) > 5
    assert all(side % 16 == 0 and side <= 800 for size in sizes for side in size)
    always = {kind: FlowRVSImageAugmentation(flip=1.0, caption=kind) for kind in ("as_published", "untouched")}
    out = {kind: step(sample_of(30, 30, "bright left"), np.random.default_rng(0)).text for kind, step in always.items()}
    assert out == {"as_published": "bleft right", "untouched": "bright left"}
    with pytest.raises(ValueError, match="caption is 'kept'; choose from swapped"):
        FlowRVSImageAugmentation(caption="kept")


def test_images_and_masks_stay_together():
    blocks = np.kron(np.random.default_rng(2).integers(0, 2, (4, 6)), np.ones((16, 16), int)).astype(bool)
    frames = np.repeat(np.where(blocks, 255, 0).astype(np.uint8)[None, ..., None], 3, axis=-1)
    small = FlowRVSImageAugmentation((48, 72), 100, (40, 50), (38, 60), (40, 56), 8)
    for seed in range(20):
        out = small(ReferringSample(frames, blocks[None], "x", "v", "0", ("0",), ""), np.random.default_rng(seed))
        assert ((out.frames[..., 0] > 127) == out.masks).mean() > 0.9


def test_a_share_of_clips_is_played_backwards():
    sample, turned = sample_of(4, 6), 0
    for seed in range(300):
        out = PlayBackwards(0.3)(sample, np.random.default_rng(seed))
        if out.frame_names == ("00001", "00000"):
            turned += 1
            assert (out.frames == sample.frames[::-1]).all() and (out.masks == sample.masks[::-1]).all()
        else:
            assert out is sample
    assert 65 < turned < 115


def test_a_caption_alone_is_normalised():
    out = NormalisedCaption()(sample_of(4, 6, " A  Dog"), np.random.default_rng(0))
    assert out.text == "a dog" and out.frames.shape == (2, 4, 6, 3)


@pytest.mark.parametrize(
    ("size", "box", "inside"),
    [((40, 50), (64, 64), (40, 50)), ((64, 64), (64, 64), (64, 64)), ((128, 64), (64, 64), (64, 32))],
)
def test_clips_are_padded_to_a_box(size, box, inside):
    sample = sample_of(*size)
    out = PadToBox(box)(sample, np.random.default_rng(0))
    assert out.frames.shape == (2, *box, 3) and out.masks.shape == (2, *box) and out.valid.shape == box
    height, width = inside
    expected = np.zeros(box, bool)
    expected[:height, :width] = True
    assert (
        (out.valid == expected).all() and (out.frames[:, ~expected] == 128).all() and not out.masks[:, ~expected].any()
    )
    if size == inside:
        assert (out.frames[:, :height, :width] == sample.frames).all()
        assert (out.masks[:, :height, :width] == sample.masks).all()
    else:
        assert (out.frames[:, :height, :width] == resize_frames(sample.frames, inside)).all()
        assert (out.masks[:, :height, :width] == resize_masks(sample.masks, inside)).all()


@pytest.mark.parametrize(
    ("size", "inside"), [((480, 854), (464, 832)), ((720, 1280), (464, 832)), ((1280, 720), (480, 256))]
)
def test_larger_clips_keep_their_shape_up_to_the_multiple(size, inside):
    """By hand: 480 x 854 shrinks by 832 / 854 to 467.6 x 832, 720 x 1280 by 0.65 to 468, 1280 x 720 by 0.375 to 270."""
    out = PadToBox((480, 832))(sample_of(*size), np.random.default_rng(0))
    assert (out.valid.any(axis=1).sum(), out.valid.any(axis=0).sum()) == inside
    with pytest.raises(ValueError, match="have a side below 16"):
        PadToBox((32, 32))(sample_of(8, 600), np.random.default_rng(0))


def test_a_padded_example_says_where_it_is_valid():
    row = Steps((PadToBox((16, 16)), ToExample(token_lengths)))(sample_of(8, 12, "a"), np.random.default_rng(0))
    assert row["valid"].sum() == 96 and row["frames"].shape == (2, 16, 16, 3)
    assert "valid" not in ToExample(token_lengths)(sample_of(8, 8, "a"), np.random.default_rng(0))


def test_short_videos_are_counted_out_loud(tmp_path, caplog):
    for name, frames in (("long", 7), ("short", 5)):
        clips = MovingShapes(MovingShapesConfig(size=(48, 48), frames=frames))
        to_mevis(tmp_path / name, clips, range(3))
    whole = Mevis(tmp_path / "long")
    assert len(LongEnough(whole, 7)) == 6 and LongEnough(whole, 7)[5].name == whole[5].name
    mixed = Mevis(tmp_path / "short")
    mixed.clips["train_000001"] = whole.clips["train_000001"]
    with caplog.at_level("INFO", logger="rvseg_jax"):
        kept = LongEnough(mixed, 6)
    assert len(kept) == 2 and kept.left_out == 4 and kept.frame_count(0) == 7
    assert "4 of 6 items left out" in caplog.text and "fewer than 6 frames" in caplog.text
    with pytest.raises(InputError, match="no video of mevis .* has 9 frames"):
        LongEnough(mixed, 9)
    assert "from 6 frames on" in repr(kept) and len(pickle.loads(pickle.dumps(kept))) == 2
