"""Images and frames of videos as SAM 2's predictors take them."""

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.imagenet import DEVIATION, MEAN


def square_image(image: np.ndarray, size: int) -> np.ndarray:
    """An image squashed to a square by antialiased bilinear resizing, then normalised by ImageNet's statistics.

    Shapes: image uint8 [H, W, 3] -> float32 [S, S, 3].

    Raises:
      InputError: for anything but an RGB image of bytes.

    Source: sam2/utils/transforms.py, `SAM2Transforms`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"an image of shape {image.shape} and type {image.dtype}: give uint8 [H, W, 3]")
    pixels = image.astype(np.float32) / np.float32(255)
    # One float plane at a time: on bytes Pillow would round between its two passes.
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(3)]
    squashed = [np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return (np.stack(squashed, axis=-1) - MEAN) / DEVIATION


def square_frame(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame of a video squashed to a square, bicubic on bytes as Pillow does it, and normalised.

    Shapes: frame uint8 [H, W, 3] -> float32 [S, S, 3].

    Source: sam2/utils/misc.py, `_load_img_as_tensor`.
    """
    image = Image.fromarray(frame)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(image, np.float32) / np.float32(255) - MEAN) / DEVIATION
