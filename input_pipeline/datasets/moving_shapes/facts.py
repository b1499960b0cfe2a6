"""What is true, false or unclear of the objects of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.render import areas
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import Look, Scene

RELATIONS = ("left_of", "right_of", "above", "below", "behind", "in_front_of")

# Thousandths of the image's short side between two centres: at least CLEAR in every frame for a relation to
# hold, at most NEVER in every frame for it not to hold; all else is unclear.
CLEAR = 140
NEVER = 30
# Largest distance across the direction of a relation in hundredths of that along it.
SLANT = 125
# Shares of the smaller object's area that two objects have in common.
OVERLAP_CLEAR = 0.06
OVERLAP_NEVER = 0.01


@dataclass(frozen=True, eq=False)
class Facts:
    """A scene as the grammar sees it.

    Attributes:
      looks: attributes of each object.
      motions: motion of each object.
      depths: place of each object in the depth order, 0 nearest.
      centres: [N, T, 2] x and y in the image in thousandths of its short side.
      amodal: bool [N, T, H, W], each object's whole region, hidden parts included.
    """

    looks: Sequence[Look]
    motions: Sequence[str]
    depths: Sequence[int]
    centres: np.ndarray
    amodal: np.ndarray
    _overlaps: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, scene: Scene, amodal: np.ndarray) -> "Facts":
        """The facts of a drawn scene with the regions of its objects."""
        objects = scene.objects
        return cls(
            [item.look for item in objects],
            [item.motion for item in objects],
            [item.depth for item in objects],
            np.stack([item.centres for item in objects]) * 1000 // scene.unit,
            amodal,
        )

    def holds(self, relation: str, one: int, other: int) -> bool | None:
        """Whether object `one` stands in `relation` to object `other`; None where that is unclear."""
        if relation in ("behind", "in_front_of"):
            return self._covers(other, one) if relation == "behind" else self._covers(one, other)
        axis = 0 if relation in ("left_of", "right_of") else 1
        away = self.centres[other] - self.centres[one]
        if relation in ("right_of", "below"):
            away = -away
        along, across = away[:, axis], np.abs(away[:, 1 - axis])
        if along.min() >= CLEAR:
            # Far off to the side, "above" is no longer what one would say.
            return True if (100 * across <= SLANT * along).all() else None
        return False if along.max() <= NEVER else None

    def _covers(self, front: int, back: int) -> bool | None:
        """Whether `front` hides a part of `back` in every frame."""
        if self.depths[front] > self.depths[back]:
            return False
        least, most = self._overlap(front, back)
        if least >= OVERLAP_CLEAR:
            return True
        return False if most <= OVERLAP_NEVER else None

    def _overlap(self, one: int, other: int) -> tuple[float, float]:
        key = (min(one, other), max(one, other))
        if key not in self._overlaps:
            a, b = self.amodal[one], self.amodal[other]
            share = areas(a & b) / np.minimum(areas(a), areas(b))
            self._overlaps[key] = (float(share.min()), float(share.max()))
        return self._overlaps[key]
