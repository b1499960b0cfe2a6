"""Images of any kind as RGB: what every way into a model that reads single images shares.

How the kinds become 8-bit RGB:

  16-bit grey         scaled, 65535 to 255; Pillow alone would cut off all above 255
  8-bit grey, palette as Pillow's `convert("RGB")`
  CMYK                the same
  transparency        dropped, the colours below it stay: what `convert("RGB")` does and published models have seen
  EXIF orientation    applied where `upright` is asked for: photographs of users are meant as they are shown, but the
                      masks of a dataset lie on the pixels as they are stored
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rvseg_jax.core.errors import InputError

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_TURNED = 5  # orientations from here on exchange height and width


def read_rgb(source: Path | str | bytes, *, upright: bool = True, where: str | None = None) -> np.ndarray:
    """Reads one image file.

    Shapes: result [H, W, 3], uint8.

    Args:
      source: a path, or the bytes of a file.
      upright: whether the EXIF orientation is applied.
      where: what to call the image in messages; None takes the path.

    Raises: InputError, naming the image, where it cannot be read, is cut off, or has values that no rule covers.
    """
    name = where or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    with _opened(source, name) as image:
        return of_pillow(ImageOps.exif_transpose(image) if upright else image, name)


def stored_size(source: Path | str | bytes, *, upright: bool = False, where: str | None = None) -> tuple[int, int]:
    """(H, W) of an image in pixels, from the header of its file.

    Raises: InputError as `read_rgb`, but does not notice a file that is cut off.
    """
    name = where or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    with _opened(source, name) as image:
        turned = upright and image.getexif().get(ExifTags.Base.Orientation, 1) >= _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def squashed(image: np.ndarray, size: int) -> np.ndarray:
    """An image squashed to a square by Pillow's bicubic filter with antialiasing, as MLLMSeg reads all images.

    Shapes: uint8 [H, W, 3] -> uint8 [S, S, 3].
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def of_pillow(image: Image.Image, where: str = "an image") -> np.ndarray:
    """A Pillow image as it lies in memory.

    Shapes: result [H, W, 3], uint8.
    Raises: InputError for an image without pixels, or of floating point or 32-bit values.
    """
    if not image.width or not image.height:
        raise InputError(f"{where} has size {image.width}x{image.height}; give an image with pixels")
    if image.mode in _DEEP:
        return _scaled(np.asarray(image), where)
    if image.mode == "F":
        raise InputError(f"{where} has values of floating point; save it with 8 or 16 bits")
    return np.array(image.convert("RGB"))


def of_array(array: Any, where: str = "an image") -> np.ndarray:
    """An array as RGB: grey [H, W] or [H, W, 1], RGB or RGBA [H, W, 3 or 4], uint8 or uint16.

    Shapes: result [H, W, 3], uint8.
    Raises: InputError for any other shape or type, or an image without pixels.
    """
    array = np.asarray(array)
    if array.dtype == np.uint16:
        array = _eight_bits(array)
    if array.dtype != np.uint8:
        raise InputError(f"{where} is {array.dtype}; give uint8 (0 to 255) or uint16")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise InputError(f"{where} has shape {array.shape}; give [H, W], [H, W, 3] or [H, W, 4] with pixels")
    return np.array(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)))


def _scaled(values: np.ndarray, where: str) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{where} has values from {low} to {high}, more than 16 bits; save it with 8 or 16")
    return np.repeat(_eight_bits(values)[..., None], 3, axis=-1)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16 bits to the nearest of 8. Shapes: as they are; uint8."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


@contextmanager
def _opened(source: Path | str | bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except InputError:
        raise
    # Decoders raise what they like at a file that is damaged.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{where} cannot be read as an image ({reason}); replace or remove it") from None
