"""Truth of what moves as image files or NumPy archives, one a frame."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.davis import VOID, palette

_MOST_BYTES = 1 << 30  # of one archive's arrays, unpacked


def read_image(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """All that is not black in an image is what moves, as in GeoMotion: grey masks, label images and colours alike.

    Value 255 of a palette image is void where it has the colour that DAVIS gives it; every other image knows no void.

    Shapes: -> bool [H, W] what moves, and bool [H, W], False where void, or None where nothing is.
    Raises: InputError where the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return _from_palette(np.asarray(image), np.array(image.getpalette(), np.uint8).reshape(-1, 3))
            grey = image if image.mode in ("L", "1", "I", "I;16", "F") else image.convert("RGB").convert("L")
            return np.asarray(grey) > 0, None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error})") from None


def _from_palette(labels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    used = np.zeros((256, 3), np.uint8)
    used[: len(colours)] = colours
    moving = np.asarray(used.any(axis=1))
    void = tuple(used[VOID]) == tuple(palette()[VOID])
    if void:
        moving[VOID] = False
    valid = labels != VOID
    return moving[labels], valid if void and not valid.all() else None


def read_archive(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The union of the objects of a `.npz` file: arrays [H, W] or [1, H, W] under whole numbers, as in gotmoving.

    An archive without an object shows nothing, but its size is then unknown.

    Shapes: -> bool [H, W], and None: such files know no void.
    Raises: InputError where the file is damaged, too large, holds no object, or its objects differ in size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MOST_BYTES:
            raise InputError(f"{path} unpacks to {size} bytes, more than the {_MOST_BYTES} that masks may take")
        with np.load(path, allow_pickle=False) as arrays:
            objects = {name: arrays[name] for name in arrays.files if name.isdecimal()}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} cannot be read as masks ({error})") from None
    union: np.ndarray | None = None
    for name, mask in objects.items():
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.ndim != 2 or (union is not None and mask.shape != union.shape):
            raise InputError(f"{path}: object {name} has shape {mask.shape}, not that of a mask or of the others")
        union = mask > 0 if union is None else union | (mask > 0)
    if union is None:
        raise InputError(f"{path} holds no object: arrays are called 0, 1, ... or 1, 2, ...")
    return union, None
