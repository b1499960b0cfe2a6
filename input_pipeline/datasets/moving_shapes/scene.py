"""What a scene holds: the words of the little world, its objects and their tracks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUBPIXEL = 16  # positions and radii are whole numbers of 1/16 pixel

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "green": (36, 168, 58),
    "blue": (42, 78, 222),
    "yellow": (238, 212, 44),
    "purple": (152, 56, 192),
    "cyan": (56, 202, 212),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
ATTRIBUTES = ("size", "texture", "colour", "shape")  # in the order in which English puts them
RADIUS = {"small": (100, 118), "large": (168, 190)}  # thousandths of the image's short side
RADIUS_GROWTH = (100, 112), (164, 182)  # smallest and largest radius of an object that grows or shrinks


@dataclass(frozen=True)
class Vocabulary:
    """The values that a dataset draws from, each a subset of what the grammar knows."""

    shapes: Sequence[str]
    colours: Sequence[str]
    textures: Sequence[str]
    motions: Sequence[str]

    def values(self, attribute: str) -> Sequence[str]:
        """The values of an attribute; sizes are always both."""
        known = {"shape": self.shapes, "colour": self.colours, "texture": self.textures, "size": SIZES}
        return known[attribute]


@dataclass(frozen=True)
class Look:
    """What an object looks like; `size` is None for an object that grows or shrinks."""

    shape: str
    colour: str
    texture: str
    size: str | None


@dataclass(frozen=True, eq=False)
class ShapeObject:
    """An object of a scene.

    Attributes:
      look: its nameable attributes.
      motion: name of its motion against the background, see `motion.MOTIONS`.
      centres: int64 [T, 2], x and y in the image in 1/16 pixel; pixel (column i, row j) has its centre at
        (i + 0.5, j + 0.5) pixels.
      radii: int64 [T], radius of the circle around it in 1/16 pixel.
      tilt: rotation in 1/1024 turns, constant.
      tint: its RGB colour, 0..255.
      depth: place in the depth order, 0 is nearest to the viewer.
    """

    look: Look
    motion: str
    centres: np.ndarray
    radii: np.ndarray
    tilt: int
    tint: tuple[int, int, int]
    depth: int


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects before a background, seen by a camera that may pan.

    Attributes:
      size: (H, W) in pixels.
      objects: in the order of their ids, 0..N-1.
      camera: int64 [T, 2], the camera's x and y in whole pixels against frame 0: the background moves the
        other way in the image.
    """

    size: tuple[int, int]
    objects: tuple[ShapeObject, ...]
    camera: np.ndarray

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.camera)

    @property
    def unit(self) -> int:
        """The image's short side in 1/16 pixel."""
        return min(self.size) * SUBPIXEL

    def front_to_back(self) -> list[int]:
        """Ids of the objects, the nearest first."""
        return sorted(range(len(self.objects)), key=lambda i: self.objects[i].depth)
