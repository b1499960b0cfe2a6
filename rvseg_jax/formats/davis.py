"""Palette PNG folders as in DAVIS 2017 and YouTube-VOS: `<video>/<frame>.png`, a pixel's value is its object.

The palette is PASCAL VOC's; value 0 is background and 255 is void (not scored).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle
from rvseg_jax.formats.frames import list_frames

VOID = 255
MAX_OBJECTS = VOID - 1


def palette() -> np.ndarray:
    """The PASCAL VOC colours of all label values.

    The bits of a label, three at a time, become the high bits of red, green and blue.
    Shapes: result [256, 3], uint8.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    labels = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def label_map(masks: np.ndarray, values: Sequence[int] | None = None) -> np.ndarray:
    """One label image from the masks of several objects; where they overlap, the first object wins.

    Shapes: masks [N, H, W] bool; result [H, W] uint8, object n is values[n], by default n + 1.
    Raises: InputError for more objects than labels, or a value that is none.
    """
    values = _checked(range(1, len(masks) + 1) if values is None else values)
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    for value, mask in reversed(list(zip(values, masks, strict=True))):
        labels[mask] = value
    return labels


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write one label image as a palette PNG.

    Shapes: labels [H, W], uint8.
    """
    image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
    image.putpalette(palette().tobytes())
    image.save(path)


def write_label_maps(folder: Path, names: Sequence[str], labels: np.ndarray) -> None:
    """Writes the label images of one video as `<name>.png`.

    Shapes: labels [T, H, W], uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, labels, strict=True):
        write_labels(folder / f"{name}.png", image)


def read_labels(path: Path) -> np.ndarray:
    """Read the label values of one palette or grey PNG.

    Shapes: result [H, W], uint8.
    Raises: InputError for an image with colours instead of labels.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise InputError(f"{path} has colours ({image.mode}), not labels; give a palette or grey PNG")
            return np.asarray(image, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a label image ({error})") from None


def read_folder(folder: Path) -> tuple[list[str], np.ndarray]:
    """Read the label images of a video in frame order.

    Shapes: result frame names, and labels [T, H, W] uint8.
    Raises: InputError where there are none or their sizes differ.
    """
    files = list_frames(folder)
    labels = [read_labels(file) for file in files]
    for file, image in zip(files, labels, strict=True):
        if image.shape != labels[0].shape:
            raise InputError(
                f"{file} is {image.shape[1]}x{image.shape[0]} but {files[0]} is "
                f"{labels[0].shape[1]}x{labels[0].shape[0]}; all frames must have one size"
            )
    return [file.stem for file in files], np.stack(labels)


@dataclass(frozen=True)
class ObjectTrack(Sequence[Mapping[str, object] | None]):
    """The mask track of one object in a folder of label images; an image is read when its mask is asked for.

    Attributes:
      folder: holds `<name>.png` for every frame.
      names: of the frames.
      value: label of the object.
    """

    folder: Path
    names: tuple[str, ...]
    value: int

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, object] | None: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, object] | None]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, object] | None | Sequence[Mapping[str, object] | None]:
        """The run-length coded mask of a frame, None where the object does not show.

        Raises: InputError where the image is missing or no label image, naming it.
        """
        if isinstance(index, slice):
            return ObjectTrack(self.folder, self.names[index], self.value)
        mask = read_named_labels(self.folder, self.names[index]) == self.value
        return rle.encode(mask) if mask.any() else None


def read_named_labels(folder: Path, name: str) -> np.ndarray:
    """Read the label values of the frame called `name`.

    Shapes: result [H, W], uint8.
    Raises: InputError where `<name>.png` is missing or no label image, naming it.
    """
    path = folder / f"{name}.png"
    if not path.is_file():
        raise InputError(f"{path} is missing")
    return read_labels(path)


class DavisWriter:
    """Write masks as one palette PNG a frame into a folder, frame by frame."""

    def __init__(self, folder: Path, values: Sequence[int]) -> None:
        """Makes the folder.

        Args:
          values: label of each sentence or object.

        Raises: InputError for more of them than labels, or a value that is none.
        """
        self._values = _checked(values)
        self.folder = folder
        folder.mkdir(parents=True)

    def add(self, names: Sequence[str], masks: np.ndarray) -> None:
        """Write the next frames.

        Shapes: masks [N, t, H, W] bool, of the t frames called `names`.
        """
        for index, name in enumerate(names):
            write_labels(self.folder / f"{name}.png", label_map(masks[:, index], self._values))

    def close(self) -> None:
        """Nothing is left to write."""

    def abort(self) -> None:
        """Nothing is open."""


def _checked(values: Sequence[int]) -> Sequence[int]:
    if len(values) > MAX_OBJECTS:
        raise InputError(f"{len(values)} objects do not fit into one label image; at most {MAX_OBJECTS} do")
    for value in values:
        if not 1 <= value <= MAX_OBJECTS:
            raise InputError(f"object {value} has no label in a palette image; number objects from 1 to {MAX_OBJECTS}")
    return values
