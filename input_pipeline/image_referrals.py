"""One image with all that is said of it: the sample of referring segmentation of images, and how its parts are read.

Nothing is decoded or drawn before it is asked for. Everything can be sent to worker processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import refcoco, rle
from rvseg_jax.formats.mask_png import read_mask
from rvseg_jax.processing.image import read_rgb

Box = tuple[float, float, float, float]


class Picture(Protocol):
    """The pixels of an image."""

    @property
    def where(self) -> str:
        """What to call it in messages."""

    def read(self) -> np.ndarray:
        """Shapes: -> uint8 [H, W, 3], RGB."""


class Region(Protocol):
    """A part of an image."""

    def draw(self, size: tuple[int, int], where: str) -> np.ndarray:
        """Shapes: -> bool [H, W], of that `size`; `where` is what to call it in messages."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, see `processing.image.read_rgb`."""

    path: Path
    upright: bool = False

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> np.ndarray:
        """uint8 [H, W, 3]. Raises: InputError where it cannot be read."""
        return read_rgb(self.path, upright=self.upright)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """An image in memory, uint8 [H, W, 3]."""

    pixels: np.ndarray
    where: str = "an image in memory"

    def read(self) -> np.ndarray:
        """The image."""
        return self.pixels


@dataclass(frozen=True, eq=False)
class CocoRegion:
    """COCO's "segmentation": polygons, a run-length coded mask, or a list of those; their union."""

    segmentation: Any

    def draw(self, size: tuple[int, int], where: str) -> np.ndarray:
        """bool [H, W]. Raises: InputError for a mask that is malformed or of another size."""
        return rle.decode(refcoco.mask_of(self.segmentation, size, where))


@dataclass(frozen=True)
class MaskFile:
    """A mask as a grey or palette PNG, any value but 0 inside."""

    path: Path

    def draw(self, size: tuple[int, int], where: str) -> np.ndarray:
        """bool [H, W]. Raises: InputError where it cannot be read or has another size."""
        mask = read_mask(self.path)
        if mask.shape != size:
            raise InputError(f"{where}: {self.path} has size {mask.shape}, the image {size}")
        return mask


@dataclass(frozen=True, eq=False)
class MaskArray:
    """A mask in memory, bool [H, W]."""

    mask: np.ndarray

    def draw(self, size: tuple[int, int], where: str) -> np.ndarray:
        """The mask."""
        return self.mask


@dataclass(frozen=True, eq=False)
class Expression:
    """What is said of an image.

    Attributes:
      text: as the dataset has it.
      key: its id, unique within the image.
      regions: what it names, an entry an object; none where it names nothing in this image.
      boxes: x, y, width and height of each region in pixels as the dataset has them, None where it has none.
      ignored: pixels that count for neither side; None where all count.
      kind: what sort of expression it is, where the dataset says so, else "".
      other_text: an expression that names another object of this image, "" where none is known.
    """

    text: str
    key: str
    regions: tuple[Region, ...]
    boxes: tuple[Box | None, ...] = ()
    ignored: Region | None = None
    kind: str = ""
    other_text: str = ""


@dataclass(frozen=True, eq=False)
class ImageReferrals:
    """An image with its expressions, grouped by object in the order of the dataset's files.

    Attributes:
      name: of the image, unique within the dataset.
      size: (H, W) in pixels.
      picture: where its pixels are.
      expressions: all that is said of it.
    """

    name: str
    size: tuple[int, int]
    picture: Picture
    expressions: tuple[Expression, ...]

    def image(self) -> np.ndarray:
        """The decoded image.

        Shapes: -> uint8 [H, W, 3].
        Raises: InputError where it cannot be read, or has another size than the list says.
        """
        pixels = self.picture.read()
        if pixels.shape[:2] != self.size:
            raise InputError(f"{self.picture.where} has size {pixels.shape[:2]}, the list says {self.size}")
        return pixels

    def mask(self, number: int) -> np.ndarray:
        """The union of what expression `number` names, without ignored pixels; empty where it names nothing.

        Shapes: -> bool [H, W].
        Raises: InputError for a region that cannot be drawn.
        """
        expression, where = self.expressions[number], self.where(number)
        mask = np.zeros(self.size, bool)
        for region in expression.regions:
            mask |= region.draw(self.size, where)
        ignored = self.ignored(number)
        return mask if ignored is None else mask & ~ignored

    def ignored(self, number: int) -> np.ndarray | None:
        """Pixels that do not count for expression `number`.

        Shapes: -> bool [H, W], or None where all count.
        """
        region = self.expressions[number].ignored
        return None if region is None else region.draw(self.size, self.where(number))

    def where(self, number: int) -> str:
        """What to call expression `number` in messages."""
        return f"{self.name}/{self.expressions[number].key}"


class ImageSource(Protocol):
    """A split of a dataset of such images."""

    def __len__(self) -> int:
        """Images."""

    def __getitem__(self, index: int) -> ImageReferrals:
        """Image `index`, nothing decoded."""

    def expression_counts(self) -> list[int]:
        """Expressions of every image."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Parts of regions that cannot be drawn and were left away, by what to call them."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Expressions that were left out, since nothing of what they name can be drawn."""
