"""The clip with its masks painted over it, as an MP4 at the source's frame times and with its audio."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rvseg_jax.formats.mp4 import Mp4Writer
from rvseg_jax.processing.video import Video

# Bright colours that stay apart on film and for most colour-blind viewers; from the ninth sentence on they repeat.
COLOURS = np.array(
    [
        (230, 60, 60),
        (40, 130, 255),
        (255, 190, 0),
        (30, 185, 100),
        (200, 80, 230),
        (0, 200, 215),
        (255, 120, 20),
        (150, 110, 70),
    ],
    dtype=np.uint8,
)
ALPHA = 0.5


def paint(image: np.ndarray, masks: np.ndarray, *, alpha: float = ALPHA) -> np.ndarray:
    """Blend each mask's colour over an image and draw its outline opaque; later masks go on top.

    Shapes: image [H, W, 3] uint8, masks [N, H, W] bool; result [H, W, 3] uint8.
    """
    result = image.copy()
    width = max(1, round(min(image.shape[:2]) / 240))
    for index, mask in enumerate(masks):
        colour = COLOURS[index % len(COLOURS)]
        blended = result[mask] * np.float32(1 - alpha) + colour * np.float32(alpha)
        result[mask] = np.round(blended).astype(np.uint8)
        result[outline(mask, width)] = colour
    return result


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask within `width` steps of the background; the image's edge is no background.

    Shapes: mask [H, W] bool; result [H, W] bool.
    """
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1, constant_values=True)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


class OverlayWriter:
    """Paint masks over the clip as they come; the clip is decoded a second time, in step with the masks."""

    def __init__(self, path: Path, video: Video) -> None:
        self._frames = video.frames()
        self._writer = Mp4Writer(
            path,
            video.height,
            video.width,
            rate=video.rate,
            time_base=video.time_base,
            audio_from=video.path if video.has_audio else None,
        )

    def add(self, names: Sequence[str], masks: np.ndarray) -> None:
        """Write the next frames.

        Shapes: masks [N, t, H, W] bool, of the t frames called `names`.
        """
        for index in range(len(names)):
            frame = next(self._frames)
            self._writer.add(paint(frame.image, masks[:, index]), frame.time, frame.duration)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def abort(self) -> None:
        """Close the file unfinished."""
        self._writer.abort()
