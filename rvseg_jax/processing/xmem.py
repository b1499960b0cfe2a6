"""Frames and masks as XMem takes them, and its probabilities as label images: the edges of upstream's `eval.py`."""

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.imagenet import DEVIATION, MEAN


def working_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width at which a video is segmented: its shorter side becomes `short` pixels, or stays if below 0.

    Source: torchvision's `Resize` with one number. (Upstream computes the size of masks by another formula, which for
    some sizes gives a pixel less; here masks have the size of their frames.)

    Raises:
      InputError: if a side would vanish.
    """
    if short < 0:
        return height, width
    low, high = min(height, width), max(height, width)
    if low < 1 or short < 1:
        raise InputError(f"frames of {height}x{width} pixels at a shorter side of {short}: all must be at least 1")
    long = int(short * high / low)
    return (short, long) if height <= width else (long, short)


def prepare_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame normalised by ImageNet's mean and deviation and then resized, without antialiasing.

    Shapes: frame uint8 [H, W, 3] -> float32 [*size, 3].

    Raises:
      InputError: for anything but an RGB image of bytes.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a frame of shape {frame.shape} and type {frame.dtype}: give uint8 [H, W, 3]")
    pixels = frame.astype(np.float32) / np.float32(255)
    return resize_bilinear((pixels - MEAN) / DEVIATION, size)


def prepare_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks resized by nearest neighbours, as torch takes them.

    Shapes: masks bool or 0/1 [O, H, W] -> float32 [O, *size].
    """
    rows, columns = (_nearest(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    return masks[:, rows[:, None], columns].astype(np.float32)


def label_image(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The most probable plane of each pixel, after resizing: 0 for the background, 1.. for objects.

    Shapes: probabilities float32 [O + 1, h, w] -> uint8 [*size].
    """
    planes = resize_bilinear(np.moveaxis(np.asarray(probabilities, np.float32), 0, -1), size)
    return planes.argmax(-1).astype(np.uint8)


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing as `torch.nn.functional.interpolate` without `align_corners` and without antialiasing.

    Shapes: image float32 [H, W, C] -> float32 [*size, C].
    """
    for axis, (old, new) in enumerate(zip(image.shape[:2], size, strict=True)):
        if old != new:
            image = _interpolate(image, axis, new)
    return image


def _interpolate(image: np.ndarray, axis: int, length: int) -> np.ndarray:
    old = image.shape[axis]
    step = np.float32(old) / np.float32(length)
    place = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    place = np.maximum(place, 0)
    first = np.minimum(place.astype(np.int64), old - 1)
    weight = (place - first.astype(np.float32)).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    before, after = (image.take(np.minimum(index, old - 1), axis) for index in (first, first + 1))
    return before * (1 - weight) + after * weight


def _nearest(old: int, new: int) -> np.ndarray:
    # torch computes the position in float32, which decides which pixel is taken at exact multiples.
    places = np.floor(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))).astype(np.int64)
    return np.minimum(places, old - 1)
