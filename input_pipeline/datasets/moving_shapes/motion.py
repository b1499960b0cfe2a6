"""Motions: what they are called, the tracks they make, and which ones can be taken for each other."""

from dataclasses import dataclass

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine

# Unit directions in the image, x to the right and y down.
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up_left": (-1, -1),
    "up_right": (1, -1),
    "down_left": (-1, 1),
    "down_right": (1, 1),
}
OSCILLATIONS = {"side_to_side": (1, 0), "up_and_down": (0, 1)}
GROWTH = ("grow", "shrink")
MOTIONS = ("still", *DIRECTIONS, *OSCILLATIONS, "circle", *GROWTH)
MIN_FRAMES = 5  # fewer frames do not show a circle or a turning point

# Travel over the clip in thousandths of the image's short side. The camera pans by at most CAMERA_TRAVEL an
# axis, so no pan turns one motion into another in the image.
TRAVEL = (270, 340)
DIAGONAL_TRAVEL = (200, 250)
SWING = (100, 130)
CAMERA_TRAVEL = 80


@dataclass(frozen=True, eq=False)
class Course:
    """A motion with its numbers drawn.

    Attributes:
      name: one of `MOTIONS`.
      offsets: int64 [T, 2], displacement against the background in 1/16 pixel, the same for every start.
      growth: int64 [T], progress of the radius in thousandths from smallest to largest; None: constant.
    """

    name: str
    offsets: np.ndarray
    growth: np.ndarray | None = None


def confusable(one: str, other: str) -> bool:
    """Whether a viewer may doubt that an object with motion `other` does not show motion `one`.

    Something that moves up and to the left also moves left, and something that grows on its place stands
    still: such objects make a sentence unclear rather than false.
    """
    if one == other:
        return False
    if one in DIRECTIONS and other in DIRECTIONS:
        (ax, ay), (bx, by) = DIRECTIONS[one], DIRECTIONS[other]
        return ax * bx + ay * by > 0
    return {one, other} <= {"still", *GROWTH}


def draw_course(draws: Draws, name: str, frames: int, unit: int) -> Course:
    """The track of motion `name` over `frames` frames in an image whose short side is `unit`/16 pixels."""
    last = max(frames - 1, 1)
    steps = np.arange(frames, dtype=np.int64)
    offsets = np.zeros((frames, 2), np.int64)
    if name in DIRECTIONS:
        x, y = DIRECTIONS[name]
        low, high = DIAGONAL_TRAVEL if x and y else TRAVEL
        travel = np.array([x * draws.between(low, high), y * draws.between(low, high)]) * unit // 1000
        offsets = steps[:, None] * travel // last
    elif name in OSCILLATIONS:
        swing = draws.between(*SWING) * unit // 1000 * draws.choice((-1, 1))
        # One and a half periods from a turning point; three half-swings are seen even at five frames.
        offsets = (cosine(steps * 1536 // last) * swing >> 15)[:, None] * np.array(OSCILLATIONS[name])
    elif name == "circle":
        radius, start = draws.between(*SWING) * unit // 1000, draws.below(1024)
        angle = start + draws.choice((-1, 1)) * (steps * 1024 // last)
        ring = np.stack([cosine(angle), sine(angle)], -1) * radius >> 15
        offsets = ring - ring[:1]
    growth = None
    if name in GROWTH:
        growth = steps * 1000 // last
        growth = growth if name == "grow" else 1000 - growth
    return Course(name, offsets, growth)


def draw_camera(draws: Draws, frames: int, unit_pixels: int, percent: int) -> np.ndarray:
    """int64 [T, 2] camera positions in whole pixels; it pans in `percent` of 100 clips and stands else."""
    if not draws.chance(percent):
        return np.zeros((frames, 2), np.int64)
    reach = CAMERA_TRAVEL * unit_pixels // 1000
    target = np.array([draws.between(-reach, reach), draws.between(-reach, reach)])
    return np.arange(frames, dtype=np.int64)[:, None] * target // max(frames - 1, 1)
