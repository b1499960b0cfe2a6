"""Grey PNG masks of one sentence each, `<video>/<sentence>/<frame>.png`, 0 and 255.

MeViS, Ref-YouTube-VOS, ReVOS and ReasonVOS take predictions in this form; any other value than 0 is foreground.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write one mask.

    Shapes: mask [H, W], bool.
    """
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path)


def read_mask(path: Path) -> np.ndarray:
    """Read one mask, any value but 0 as foreground.

    Shapes: result [H, W], bool.
    Raises: InputError for a file that is no grey or palette image.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise InputError(f"{path} has colours ({image.mode}); a mask is a grey or palette PNG")
            return np.asarray(image) != 0
    except OSError as error:
        raise InputError(f"{path} cannot be read as a mask ({error})") from None


class MaskPngWriter:
    """Write masks frame by frame into one folder a sentence or object."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Makes the folders.

        Args:
          folder: holds them.
          names: of the folders, "0", "1", ... for sentences.
        """
        self._folders = [folder / name for name in names]
        for path in self._folders:
            path.mkdir(parents=True)

    def add(self, names: Sequence[str], masks: np.ndarray) -> None:
        """Write the next frames.

        Shapes: masks [N, t, H, W] bool, of the t frames called `names`.
        """
        for folder, frames in zip(self._folders, masks, strict=True):
            for name, mask in zip(names, frames, strict=True):
                write_mask(folder / f"{name}.png", mask)

    def close(self) -> None:
        """Nothing is left to write."""

    def abort(self) -> None:
        """Nothing is open."""
