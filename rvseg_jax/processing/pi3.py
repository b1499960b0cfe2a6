"""Frames as Pi3 takes them: in their proportions, as patches, with a bound on the pixels."""

import math

import numpy as np
from PIL import Image

MOST_PIXELS = 255_000


def fitted_size(height: int, width: int, *, patch_size: int, most_pixels: int = MOST_PIXELS) -> tuple[int, int]:
    """The size in whole patches nearest to a frame's proportions that has at most `most_pixels`; small frames grow.

    Shapes: -> (H, W).

    Source: `Pi3:pi3/utils/basic.py`, `load_images_as_tensor`.
    """
    scale = math.sqrt(most_pixels / (height * width))
    columns, rows = round(width * scale / patch_size), round(height * scale / patch_size)
    while columns * rows * patch_size**2 > most_pixels:
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return max(rows, 1) * patch_size, max(columns, 1) * patch_size


def fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame resized by Pillow's Lanczos filter. Shapes: uint8 [H, W, 3] -> uint8 [*size, 3]."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))
