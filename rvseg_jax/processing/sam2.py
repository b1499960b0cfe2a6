"""Images as SAM 2's image predictor takes them: `SAM2Transforms` of sam2/utils/transforms.py."""

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def square_image(image: np.ndarray, size: int) -> np.ndarray:
    """An image squashed to a square by antialiased bilinear resizing, then normalised by ImageNet's statistics.

    Shapes: image uint8 [H, W, 3] -> float32 [S, S, 3].

    Raises:
      InputError: for anything but an RGB image of bytes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"an image of shape {image.shape} and type {image.dtype}: give uint8 [H, W, 3]")
    pixels = image.astype(np.float32) / np.float32(255)
    # One float plane at a time: on bytes Pillow would round between its two passes.
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(3)]
    squashed = [np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return (np.stack(squashed, axis=-1) - MEAN) / DEVIATION
