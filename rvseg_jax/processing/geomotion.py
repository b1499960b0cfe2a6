"""Frames as GeoMotion takes them: squashed to squares by Pillow."""

import io

import numpy as np
from PIL import Image

_JPEG_QUALITY = 95  # OpenCV's default, by which upstream writes frames for SAM 2


def squashed(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame squashed to a square by Pillow's Lanczos filter, whatever its proportions.

    Shapes: uint8 [H, W, 3] -> uint8 [S, S, 3].
    """
    return _resized(frame, size, Image.Resampling.LANCZOS)


def handed_on(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame as upstream hands it to SAM 2: squashed by the bilinear filter, then through a JPEG file.

    Shapes: uint8 [H, W, 3] -> uint8 [S, S, 3].
    """
    stored = io.BytesIO()
    Image.fromarray(_resized(frame, size, Image.Resampling.BILINEAR)).save(stored, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(Image.open(stored))


def _resized(frame: np.ndarray, size: int, kernel: Image.Resampling) -> np.ndarray:
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), kernel))
