"""What a user says of one object in one frame, and whether that can be meant."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError

KINDS = ("points", "box", "mask")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One object in one frame: its mask, or points and perhaps a box.

    Shapes: points float32 [P, 2] as x, y; labels int32 [P]; box float32 [4] as x0, y0, x1, y1; mask bool [H, W]; all
      in pixels of the video.

    Attributes:
      labels: 1 for a point on the object, 0 for one that is not.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | None = None
    mask: np.ndarray | None = None

    @classmethod
    def of(cls, *, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> "Prompt":
        """A prompt of lists or arrays.

        Args:
          labels: of the points; None takes all of them to be on the object.

        Raises:
          InputError: if nothing is given, a mask beside points or a box, or something is no prompt at all.
        """
        if mask is not None:
            if points is not None or box is not None:
                raise InputError("a mask says all: give either a mask, or points and a box")
            mask = np.asarray(mask)
            if mask.ndim != 2:
                raise InputError(f"a mask of shape {mask.shape} must be [H, W], one object a mask")
            return cls(mask=mask != 0)
        if points is None and box is None:
            raise InputError("say where the object is: give points, a box, or a mask")
        if points is not None:
            points, labels = _points(points, labels)
        if box is not None:
            box = _numbers(box, "a box")
            if box.shape != (4,) or not (box[0] < box[2] and box[1] < box[3]):
                raise InputError(f"a box {box.tolist()} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return cls(points, labels, box)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of "points", "box" and "mask" are given."""
        return tuple(name for name in KINDS if getattr(self, name) is not None)

    def check(self, size: tuple[int, int], what: str, *, appears: bool) -> None:
        """Whether the prompt fits a frame.

        Args:
          size: (H, W) of the frame in pixels.
          what: what to call the prompt in messages.
          appears: whether the object is new, so that it has to be there.

        Raises:
          InputError: for a place outside of the frame, a mask of another size, or a new object with an empty mask.
        """
        height, width = size
        if self.mask is not None:
            if self.mask.shape != size:
                raise InputError(
                    f"{what}: the mask is {self.mask.shape[1]}x{self.mask.shape[0]} pixels but the frame is "
                    f"{width}x{height}; make the mask from this frame"
                )
            if appears and not self.mask.any():
                raise InputError(f"{what}: the mask is empty, so there is nothing to follow")
        places = [] if self.points is None else self.points.tolist()
        places += [] if self.box is None else self.box.reshape(2, 2).tolist()
        for x, y in places:
            if not (0 <= x <= width and 0 <= y <= height):
                raise InputError(f"{what}: ({x:g}, {y:g}) lies outside of the frame of {width}x{height} pixels")


def _points(points: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    places = _numbers(points, "points")
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise InputError(f"points of shape {places.shape} must be [P, 2]: x and y of each")
    kinds = np.ones(len(places), np.int32) if labels is None else np.asarray(labels)
    if kinds.shape != (len(places),) or not np.isin(kinds, (0, 1)).all():
        raise InputError(f"labels {kinds.tolist()} must be one a point, 1 (on the object) or 0 (not on it)")
    return places, kinds.astype(np.int32)


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{what} {values!r} must be numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{what} {array.tolist()} has a coordinate that is no finite number")
    return array
