"""A still world with moving objects: a back wall, a ground, and flat textured shapes that stand or fly in it."""

from dataclasses import dataclass, replace

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.camera import (
    Camera,
    draw_camera,
    progress,
    rotations,
    times,
    transposed,
    turned,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.textures import Texture, draw_texture
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import COLOURS, SHAPES

# What a moving object does against the world.
MOTIONS = ("slide", "approach", "circle", "swing", "spin")

# Thousandths of the image's short side, in mid-clip.
RADIUS = (95, 200)
TRAVEL = (120, 300)  # way of an object over the clip
_RING = (60, 120)  # radius of a circle
_DEPTH = (2600, 6200)  # of objects in mid-clip, in thousandths of a length unit
_WALL = (8000, 12000)
_GROUND = (1000, 1700)  # below the camera
_NEAREST = 1.2  # length units before the camera, of an object's centre


@dataclass(frozen=True, eq=False)
class Surface:
    """A flat surface that may move rigidly.

    Attributes:
      centre: float64 [T, 3], world coordinates.
      axes: float64 [T, 3, 3], columns: its unit axes across and down, and their normal.
      radius: of the shape, in length units.
      shape: one of `SHAPES`, or "" for an endless plane.
      texture: what it looks like.
      tile: length units that a tile of the texture covers.
      motion: one of `MOTIONS`, or "" for what stands still.
    """

    centre: np.ndarray
    axes: np.ndarray
    radius: float
    shape: str
    texture: Texture
    tile: float
    motion: str = ""

    def seen_from(self, camera: Camera) -> "Surface":
        """The same in camera coordinates."""
        axes = times(transposed(camera.rotation), self.axes)
        return replace(self, centre=camera.sees(self.centre[:, None])[:, 0], axes=axes)


@dataclass(frozen=True, eq=False)
class GeometricScene:
    """A world and the camera that films it.

    Attributes:
      camera: the camera.
      walls: the back wall and the ground, which fill the image.
      objects: flat shapes, in the order of their ids, 0..N-1.
    """

    camera: Camera
    walls: tuple[Surface, ...]
    objects: tuple[Surface, ...]

    @property
    def moving(self) -> np.ndarray:
        """bool [N], which objects move."""
        return np.array([bool(item.motion) for item in self.objects], bool)


def draw_scene(
    draws: Draws, kind: str, frames: int, size: tuple[int, int], still: tuple[int, int], moving: tuple[int, int]
) -> GeometricScene | None:
    """A scene with a camera of `kind`, and numbers of still and moving objects from the ranges.

    None where an object comes too close to the camera, or hardly moves.
    """
    camera = draw_camera(draws, kind, frames, size)
    walls = (_wall(draws, frames), _ground(draws, frames))
    counts = [draws.between(*still), draws.between(*moving)]
    motions = [""] * counts[0] + [draws.choice(MOTIONS) for _ in range(counts[1])]
    objects = tuple(_object(draws, camera, motion) for motion in draws.shuffled(motions))
    for item in objects:
        if item.seen_from(camera).centre[:, 2].min() < _NEAREST:
            return None
        if item.motion and travelled(item, camera) * 1000 < TRAVEL[0] * min(size):
            return None
    return GeometricScene(camera, walls, objects)


def travelled(item: Surface, camera: Camera) -> float:
    """Pixels by which an object moves over the clip beyond what a still one would, summed over its frames.

    Of the object's centre and the ends of its axes the one counts that moves most from a frame to the next.
    """
    ends = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * (0.8 * item.radius)
    across, down = item.axes[:, None, :, 0], item.axes[:, None, :, 1]
    points = item.centre[:, None] + ends[:, :1] * across + ends[:, 1:] * down
    later = camera.after(1)
    step = later.project(later.sees(points[1:])) - later.project(later.sees(points[:-1]))
    square = step * step
    longest = np.sqrt(square[..., 0] + square[..., 1]).max(axis=1)
    # Whole numbers: the order in which floats are added differs between machines.
    return int(np.floor(longest * 1024).astype(np.int64).sum()) / 1024


def _wall(draws: Draws, frames: int) -> Surface:
    axes = rotations(*(np.full(frames, draws.between(-300, 300) / 1000) for _ in range(3)))
    centre = np.array([0.0, 0.0, draws.between(*_WALL) / 1000])
    texture = draw_texture(draws, _dull(draws), draws.between(50, 110))
    return Surface(np.tile(centre, (frames, 1)), axes, 0.0, "", texture, draws.between(3000, 5500) / 1000)


def _ground(draws: Draws, frames: int) -> Surface:
    # Across is the world's x, down its z: the plane lies flat.
    lying = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]).T
    tilt = rotations(*(np.full(frames, draws.between(-60, 60) / 1000) for _ in range(3)))
    centre = np.array([0.0, draws.between(*_GROUND) / 1000, 4.0])
    texture = draw_texture(draws, _dull(draws), draws.between(50, 110))
    return Surface(np.tile(centre, (frames, 1)), times(tilt, lying), 0.0, "", texture, draws.between(1800, 3200) / 1000)


def _dull(draws: Draws) -> tuple[int, int, int]:
    grey = draws.between(80, 175)
    red, green, blue = (grey + draws.between(-35, 35) for _ in range(3))
    return red, green, blue


def _object(draws: Draws, camera: Camera, motion: str) -> Surface:
    """An object that is to be seen in mid-clip; still and moving ones are drawn alike."""
    frames, (height, width), side = len(camera.focal), camera.size, min(camera.size)
    middle, along = frames // 2, progress(frames, draws.below(50))
    depth, pixels = draws.between(*_DEPTH) / 1000, draws.between(*RADIUS) * side / 1000
    focal = float(camera.focal[middle])
    place = [draws.between(round(1000 * pixels), round(1000 * (length - pixels))) / 1000 for length in (width, height)]
    x, y = ((at - middle_at) / focal * depth for at, middle_at in zip(place, camera.centre, strict=True))
    centre = turned(camera.rotation[middle], np.array([x, y, depth])) + camera.position[middle]
    unit = side / focal * depth / 1000  # a thousandth of the short side, at the object's depth
    offsets, spin = _course(draws, motion, along, unit, depth)
    tilt = [np.full(frames, draws.between(-450, 450) / 1000) for _ in range(2)]
    angle = draws.below(1024) + spin
    cos, sin = cosine(angle) / 32768, sine(angle) / 32768
    zero, one = np.zeros(frames), np.ones(frames)
    upright = np.stack([np.stack(row, -1) for row in ((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))], -2)
    colour = COLOURS[draws.choice(tuple(COLOURS))]
    texture = draw_texture(draws, colour, draws.between(60, 120))
    radius = pixels * depth / focal
    axes = times(rotations(tilt[0], tilt[1], zero), upright)
    tile = radius * draws.between(1500, 2600) / 1000
    return Surface(centre + offsets, axes, radius, draws.choice(SHAPES), texture, tile, motion)


def _course(draws: Draws, motion: str, along: np.ndarray, unit: float, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets float64 [T, 3] in the world, and int64 [T] turns about the normal in 1/1024, of a motion."""
    frames = len(along)
    offsets, spin = np.zeros((frames, 3)), np.zeros(frames, np.int64)
    if not motion:
        return offsets, spin
    steps, last = np.arange(frames), frames - 1
    travel, angle = draws.between(*TRAVEL) * unit, draws.below(1024)
    way = np.array([int(cosine(angle)), int(sine(angle))]) / 32768 * travel
    if motion in ("slide", "spin"):
        share = 1.0 if motion == "slide" else 0.4
        offsets[:, :2] = along[:, None] * way * share
    if motion == "spin":
        spin = steps * draws.choice((-1, 1)) * draws.between(200, 420) // last
    elif motion == "approach":
        offsets[:, :2] = along[:, None] * way * 0.7
        offsets[:, 2] = along * (draws.choice((-1, 1)) * draws.between(250, 450) / 1000 * depth)
    elif motion == "circle":
        around = angle + draws.choice((-1, 1)) * (steps * draws.between(700, 1024) // last)
        offsets[:, 0] = cosine(around) / 32768 * (draws.between(*_RING) * unit)
        offsets[:, 1] = sine(around) / 32768 * (draws.between(*_RING) * unit)
    elif motion == "swing":
        # One and a half periods.
        offsets[:, :2] = (cosine(steps * 1536 // last) / 32768)[:, None] * (way / 3)
    return offsets, spin
