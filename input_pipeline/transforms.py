"""From samples to training examples: drawing clips, resizing, cropping, flipping, captions, tokens.

A step is called with what the step before made and a `numpy.random.Generator`; steps are plain objects that
can be sent to worker processes. Frames stay uint8: the device normalises them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from rvseg_jax.input_pipeline.captions import normalised_caption, swap_left_right, swap_letters
from rvseg_jax.input_pipeline.resampling import boxed, cropped, resized, short_side_size
from rvseg_jax.input_pipeline.sampling import sparse_around
from rvseg_jax.input_pipeline.sources import ReferringSample, ReferringVideo, Source

Step = Callable[[Any, np.random.Generator], Any]

_CAPTIONS = {"swapped": swap_left_right, "as_published": swap_letters, "untouched": str}


def flipped(sample: ReferringSample) -> ReferringSample:
    """The sample mirrored left to right, and its sentence with it."""
    return replace(
        sample,
        frames=sample.frames[:, :, ::-1],
        masks=sample.masks[:, :, ::-1],
        text=swap_left_right(sample.text),
    )


def random_crop(sample: ReferringSample, sides: tuple[int, int], rng: np.random.Generator) -> ReferringSample:
    """A random rectangle of the sample whose sides lie within `sides`, or are whole where the sample is smaller."""
    full = sample.frames.shape[1:3]
    height, width = (int(rng.integers(min(sides[0], side), min(side, sides[1]) + 1)) for side in full)
    top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(full, (height, width), strict=True))
    return cropped(sample, top, left, height, width)


@dataclass(frozen=True)
class Steps:
    """Several steps as one."""

    steps: Sequence[Step]

    def __call__(self, item: Any, rng: np.random.Generator) -> Any:
        """The result of the last step."""
        for step in self.steps:
            item = step(item, rng)
        return item


@dataclass(frozen=True, eq=False)
class DrawClip:
    """Decodes a sparse training clip of a video around its anchor.

    Attributes:
      frames: length of the clip.
      others: where another video is drawn from when nothing that the sentence names shows in the clip, as
        FlowRVS does; None keeps such clips, with empty masks.
      tries: how many videos are tried before it is an error.
    """

    frames: int
    others: Source[ReferringVideo] | None = None
    tries: int = 100

    def __call__(self, video: ReferringVideo, rng: np.random.Generator) -> ReferringSample:
        """The clip.

        Raises: ValueError where `tries` videos in a row show no target.
        """
        first = video.name
        for _ in range(self.tries):
            places = sparse_around(video.anchor, len(video.frames), self.frames, rng)
            masks = video.masks(places)
            if self.others is None or masks.any():
                return video.sample(places, masks=masks)
            video = self.others[int(rng.integers(len(self.others)))]
        raise ValueError(f"neither {first} nor {self.tries - 1} random others show a target: check the masks")


@dataclass(frozen=True)
class FlowRVSAugmentation:
    """FlowRVS's augmentation of training videos, with a correct swap of left and right.

    Half of the clips are resized; the other half are resized, cropped and resized again. Then half of all are
    mirrored. All sizes are floored to multiples of `multiple`.

    Attributes:
      short, longest: short and longest side of the result.
      first_shorts: short sides to choose from before a crop.
      crop: least and most height and width of a crop.
      multiple: both sides of a frame are multiples of it.
      flip: share of clips that are mirrored.

    Source: FlowRVS datasets/transforms_video.py and datasets/mevis.py, `make_coco_transforms`.
    """

    short: int = 480
    longest: int = 832
    first_shorts: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    multiple: int = 32
    flip: float = 0.5

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> ReferringSample:
        """The augmented sample, its caption normalised."""
        if rng.random() < 0.5:
            sample = self._fit(sample, int(rng.choice(self.first_shorts)), None)
            sample = random_crop(sample, self.crop, rng)
        sample = self._fit(sample, self.short, self.longest)
        if rng.random() < self.flip:
            sample = flipped(sample)
        return replace(sample, text=normalised_caption(sample.text))

    def _fit(self, sample: ReferringSample, short: int, longest: int | None) -> ReferringSample:
        height, width = sample.frames.shape[1:3]
        size = short_side_size(height, width, short=short, longest=longest, multiple=self.multiple)
        return resized(sample, size)


@dataclass(frozen=True)
class FlowRVSImageAugmentation:
    """FlowRVS's augmentation of the images that it is pre-trained on.

    Half of the images are mirrored. Then half are resized; the other half are resized, cropped and resized again.
    Sides are rounded up to multiples of `multiple`, to which upstream's trainer enlarges what it gets. Pixels stay as
    they are: upstream normalises images by ImageNet's mean although its autoencoder expects -1..1.

    Attributes:
      shorts: short sides to choose from without a crop.
      longest: longest side of the result, before it is rounded up.
      first_shorts: short sides to choose from before a crop.
      crop: least and most height and width of a crop.
      crop_shorts: short sides to choose from after a crop.
      multiple: both sides of a frame are multiples of it.
      flip: share of images that are mirrored.
      caption: what becomes of a mirrored image's sentence: "swapped" exchanges left and right as words; "as_published"
        exchanges the letters wherever they stand ("bright" becomes "bleft"); "untouched" leaves it.

    Source: FlowRVS datasets/refexp.py, `make_coco_transforms`, and datasets/transform_utils.py, `check_shape`.
    """

    shorts: tuple[int, ...] = (384, 432, 480, 512, 544, 576, 608, 640, 672, 720)
    longest: int = 800
    first_shorts: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    crop_shorts: tuple[int, ...] = (360, 392, 416, 448, 480, 512, 544, 576)
    multiple: int = 16
    flip: float = 0.5
    caption: Literal["swapped", "as_published", "untouched"] = "swapped"

    def __post_init__(self) -> None:
        if self.caption not in _CAPTIONS:
            raise ValueError(f"caption is {self.caption!r}; choose from {', '.join(_CAPTIONS)}")

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> ReferringSample:
        """The augmented sample, its caption normalised."""
        text = normalised_caption(sample.text)
        if rng.random() < self.flip:
            sample, text = flipped(sample), _CAPTIONS[self.caption](text)
        shorts = self.shorts
        if rng.random() < 0.5:
            height, width = sample.frames.shape[1:3]
            size = short_side_size(height, width, short=int(rng.choice(self.first_shorts)))
            sample = random_crop(resized(sample, size), self.crop, rng)
            shorts = self.crop_shorts
        height, width = sample.frames.shape[1:3]
        size = short_side_size(height, width, short=int(rng.choice(shorts)), longest=self.longest)
        up = -(-size[0] // self.multiple) * self.multiple, -(-size[1] // self.multiple) * self.multiple
        return replace(resized(sample, up), text=text)


@dataclass(frozen=True)
class PlayBackwards:
    """Turns a share of the clips round in time.

    Sentences stay as they are, as upstream's: "moving left" is then no longer true. Source: FlowRVS datasets/ytvos.py.

    Attributes:
      share: of the clips, 0..1.
    """

    share: float

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> ReferringSample:
        """The clip, or its frames, masks and names from the last to the first."""
        if rng.random() >= self.share:
            return sample
        names = sample.frame_names[::-1]
        return replace(sample, frames=sample.frames[::-1], masks=sample.masks[::-1], frame_names=names)


@dataclass(frozen=True)
class NormalisedCaption:
    """A clip with its sentence in lower case and with single spaces, otherwise untouched."""

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> ReferringSample:
        """The clip with its sentence normalised."""
        return replace(sample, text=normalised_caption(sample.text))


@dataclass(frozen=True)
class PadToBox:
    """Fits every clip into frames of one size, so that batches have one shape; after all that changes sizes.

    Attributes:
      box: (height, width) of the result in pixels.
      multiple: sides of clips that are shrunk are floored to it.
    """

    box: tuple[int, int]
    multiple: int = 16

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> ReferringSample:
        """The clip in its box, see `resampling.boxed`; its `valid` says where it is."""
        return boxed(sample, tuple(self.box), self.multiple)


@dataclass(frozen=True)
class ToExample:
    """The last step: named arrays, one batch row.

    Attributes:
      tokenise: the sentence as named arrays of fixed shapes, such as {"tokens": int32 [L], "token_mask": bool
        [L]}; the caller's tokeniser, in numpy.
    """

    tokenise: Callable[[str], Mapping[str, np.ndarray]]

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """frames uint8 [T, H, W, 3], masks bool [T, H, W], what `tokenise` gives; valid bool [H, W] of padded clips.

        Raises: ValueError where `tokenise` uses one of these names.
        """
        row = {"frames": np.ascontiguousarray(sample.frames), "masks": np.ascontiguousarray(sample.masks)}
        if sample.valid is not None:
            row["valid"] = sample.valid
        tokens = {name: np.asarray(array) for name, array in self.tokenise(sample.text).items()}
        if row.keys() & tokens.keys():
            raise ValueError(f"tokenise returns {sorted(row.keys() & tokens.keys())}, names that are taken")
        return row | tokens
