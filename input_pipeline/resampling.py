"""Clips of another size: resampled, cut, or fitted into a box."""

from dataclasses import replace

import numpy as np
from PIL import Image

from rvseg_jax.input_pipeline.sources import ReferringSample

MID_GREY = 128  # nearest to 0 once pixels are normalised to -1..1, which is what upstream pads with


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


def boxed(sample: ReferringSample, box: tuple[int, int], multiple: int) -> ReferringSample:
    """The sample in frames of the size of `box`: shrunk where it is larger, and padded on the right and below.

    A clip that is shrunk keeps its shape but for its sides, which are floored to `multiple`. Padding is mid-grey in
    the frames, False in the masks, and False in `valid`, which is True where the clip is.

    Shapes: result frames [T, *box, 3], masks [T, *box], valid [*box] bool.
    Raises: ValueError if a side would vanish.
    """
    height, width = sample.frames.shape[1:3]
    scale = min(box[0] / height, box[1] / width)
    if scale < 1:
        # Rounded first: 0.1 * 480 should not become 47.
        sides = (int(round(side * scale, 6)) // multiple * multiple for side in (height, width))
        size = next(sides), next(sides)
        if 0 in size:
            raise ValueError(f"frames of {width}x{height} in a box of {box[1]}x{box[0]} have a side below {multiple}")
        sample = resized(sample, size)
        height, width = size
    frames = np.full((len(sample.frames), *box, 3), MID_GREY, np.uint8)
    masks = np.zeros((len(sample.masks), *box), bool)
    valid = np.zeros(box, bool)
    frames[:, :height, :width], masks[:, :height, :width], valid[:height, :width] = sample.frames, sample.masks, True
    return replace(sample, frames=frames, masks=masks, valid=valid)
