"""Folders of numbered frame images: listing in frame order, reading, writing."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.image import read_rgb, stored_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def list_frames(folder: Path) -> list[Path]:
    """Image files of a folder in natural order of their names: `frame2` before `frame10`.

    Hidden files and files that are no images are passed over.
    Raises: InputError where there is no image, or two of them give the same frame name (`0.jpg`, `0.png`).
    """
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not files:
        raise InputError(f"{folder} holds no frames; looked for {', '.join(IMAGE_SUFFIXES)}")
    files.sort(key=lambda path: (_natural_key(path.stem), path.name))
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen:
            raise InputError(
                f"{folder} holds {seen[path.stem].name} and {path.name}, two files for one frame; remove one"
            )
        seen[path.stem] = path
    return files


def read_image(path: Path) -> np.ndarray:
    """Read one image as RGB, turned upright by its EXIF orientation; see `processing.image.read_rgb`.

    Shapes: result [H, W, 3], uint8.
    Raises: InputError where the file cannot be read as an image.
    """
    return read_rgb(path)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header.

    Raises: InputError where the file cannot be read as an image.
    """
    return stored_size(path, upright=True)


def decode_image(data: bytes, where: str) -> np.ndarray:
    """As `read_image`, from the bytes of a file; `where` is what to call it in messages."""
    return read_rgb(data, where=where)


def encoded_size(data: bytes, where: str) -> tuple[int, int]:
    """As `image_size`, from the bytes of a file; `where` is what to call it in messages."""
    return stored_size(data, upright=True, where=where)


def write_frames(folder: Path, images: Iterable[np.ndarray], *, suffix: str = ".jpg") -> list[Path]:
    """Write images as `00000<suffix>`, `00001<suffix>`, ... (JPEG quality 95).

    Shapes: each image [H, W, 3], uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, image in enumerate(images):
        paths.append(folder / f"{index:05d}{suffix}")
        # Quality is for JPEG; the other writers pass over it.
        Image.fromarray(image).save(paths[-1], quality=95)
    return paths


def _natural_key(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
