"""From samples to training examples: drawing clips, resizing, cropping, flipping, captions, tokens.

A step is called with what the step before made and a `numpy.random.Generator`; steps are plain objects that
can be sent to worker processes. Frames stay uint8: the device normalises them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from rvseg_jax.input_pipeline.sampling import sparse_around
from rvseg_jax.input_pipeline.sources import ReferringSample, ReferringVideo, Source

Step = Callable[[Any, np.random.Generator], Any]

_MIRRORED = {
    "left": "right",
    "leftmost": "rightmost",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "clockwise": "counterclockwise",
    "anticlockwise": "clockwise",
}
_MIRRORED |= {value: key for key, value in _MIRRORED.items() if value not in _MIRRORED}
_MIRRORED_WORD = re.compile(r"\b(" + "|".join(_MIRRORED) + r")\b", re.IGNORECASE)


def swap_left_right(text: str) -> str:
    """The sentence as it reads for the mirrored image.

    Whole words only, in their own case: "the bright car on the Left" becomes "the bright car on the Right".
    Directions of rotation change too.
    """

    def mirrored(match: re.Match[str]) -> str:
        word = match.group()
        other = _MIRRORED[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _MIRRORED_WORD.sub(mirrored, text)


def normalised_caption(text: str) -> str:
    """Lower case, and white space as single spaces: what training sets are read with."""
    return " ".join(text.lower().split())


def short_side_size(
    height: int, width: int, *, short: int, longest: int | None = None, multiple: int = 1
) -> tuple[int, int]:
    """Size with a given short side and the same shape, as DETR's and FlowRVS's training resize.

    Args:
      height, width: of the source in pixels.
      short: the short side to reach.
      longest: where the long side would be longer, the short side becomes less; None: no limit.
      multiple: both sides are floored to a multiple of it, after all else.

    Raises: ValueError if a side would vanish.
    """
    low, high = min(height, width), max(height, width)
    if longest is not None and high / low * short > longest:
        short = round(longest * low / high)
    if width < height:
        size = int(short * height / width), short
    else:
        size = short, int(short * width / height)
    floored = size[0] // multiple * multiple, size[1] // multiple * multiple
    if 0 in floored:
        raise ValueError(f"frames of {width}x{height} at short side {short} have a side below {multiple} pixels")
    return floored


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling with Pillow, whose antialiasing published weights have seen.

    Shapes: frames uint8 [T, H, W, 3] -> uint8 [T, *size, 3].
    """
    if frames.shape[1:3] == tuple(size):
        return frames
    sized = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR) for frame in frames]
    return np.stack([np.asarray(image) for image in sized])


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbours as torch takes them: the pixel that the upper left corner falls into.

    Shapes: masks bool [T, H, W] -> bool [T, *size].
    """
    rows, columns = (_nearest(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    return masks[:, rows[:, None], columns]


def _nearest(old: int, new: int) -> np.ndarray:
    # torch computes the position in float32, which decides which pixel is taken at exact multiples.
    places = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64)
    return np.minimum(places, old - 1)


def resized(sample: ReferringSample, size: tuple[int, int]) -> ReferringSample:
    """The sample with frames and masks of `size` (H, W)."""
    return replace(sample, frames=resize_frames(sample.frames, size), masks=resize_masks(sample.masks, size))


def cropped(sample: ReferringSample, top: int, left: int, height: int, width: int) -> ReferringSample:
    """The sample cut to a rectangle, in pixels.

    Raises: ValueError for a rectangle that leaves the frames.
    """
    full = sample.frames.shape[1:3]
    if min(top, left) < 0 or top + height > full[0] or left + width > full[1] or min(height, width) < 1:
        raise ValueError(f"cannot cut {height}x{width} at ({top}, {left}) out of frames of {full[0]}x{full[1]}")
    window = np.s_[:, top : top + height, left : left + width]
    return replace(sample, frames=sample.frames[window], masks=sample.masks[window])


def flipped(sample: ReferringSample) -> ReferringSample:
    """The sample mirrored left to right, and its sentence with it."""
    return replace(
        sample,
        frames=sample.frames[:, :, ::-1],
        masks=sample.masks[:, :, ::-1],
        text=swap_left_right(sample.text),
    )


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
            if self.others is None or video.masks(places).any():
                return video.sample(places)
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
            height, width = (self._side(side, rng) for side in sample.frames.shape[1:3])
            top = int(rng.integers(0, sample.frames.shape[1] - height + 1))
            left = int(rng.integers(0, sample.frames.shape[2] - width + 1))
            sample = cropped(sample, top, left, height, width)
        sample = self._fit(sample, self.short, self.longest)
        if rng.random() < self.flip:
            sample = flipped(sample)
        return replace(sample, text=normalised_caption(sample.text))

    def _fit(self, sample: ReferringSample, short: int, longest: int | None) -> ReferringSample:
        height, width = sample.frames.shape[1:3]
        size = short_side_size(height, width, short=short, longest=longest, multiple=self.multiple)
        return resized(sample, size)

    def _side(self, side: int, rng: np.random.Generator) -> int:
        high = min(side, self.crop[1])
        return int(rng.integers(min(self.crop[0], high), high + 1))


@dataclass(frozen=True)
class ToExample:
    """The last step: named arrays, one batch row.

    Attributes:
      tokenise: the sentence as named arrays of fixed shapes, such as {"tokens": int32 [L], "token_mask": bool
        [L]}; the caller's tokeniser, in numpy.
    """

    tokenise: Callable[[str], Mapping[str, np.ndarray]]

    def __call__(self, sample: ReferringSample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """frames uint8 [T, H, W, 3], masks bool [T, H, W], and what `tokenise` gives.

        Raises: ValueError where `tokenise` uses one of these names.
        """
        row = {"frames": np.ascontiguousarray(sample.frames), "masks": np.ascontiguousarray(sample.masks)}
        tokens = {name: np.asarray(array) for name, array in self.tokenise(sample.text).items()}
        if row.keys() & tokens.keys():
            raise ValueError(f"tokenise returns {sorted(row.keys() & tokens.keys())}, names that are taken")
        return row | tokens
