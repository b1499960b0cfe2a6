"""Pixels of a scene: regions, textures, background, and the exact optical flow.

Everything is element-wise float32 or integer arithmetic, which IEEE 754 fixes to the bit, so that the same
scene gives the same bytes on every machine. Objects are drawn in windows around them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import SUBPIXEL, Scene, ShapeObject

BACKGROUNDS = ("blobs", "gradient", "stripes", "checks")
_FAR = np.float32(1e3)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_OUTLINE = np.float32(1.1)  # pixels of darker rim, which keeps apart two objects of one colour
# Half-planes of regular polygons with corners on the unit circle: (normal x, normal y), y down.
_THREE = [(np.float32(x), np.float32(y)) for x, y in ((0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5))]
_FIVE = [
    (np.float32(x), np.float32(y))
    for x, y in (
        (0.0, 1.0),
        (0.95105652, 0.30901699),
        (0.58778525, -0.80901699),
        (-0.58778525, -0.80901699),
        (-0.95105652, 0.30901699),
    )
]


@dataclass(frozen=True, eq=False)
class Stamp:
    """An object's window in every frame.

    Attributes:
      corners: [T] pairs of slices, rows and columns of the window in the image.
      x, y: float32 [T, K, K], position in the object's own frame, in units of its radius.
      distance: float32 [T, K, K], pixels to its edge, negative inside.
      inside: bool [T, K, K], its region.
    """

    corners: list[tuple[slice, slice]]
    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    inside: np.ndarray


def stamp(item: ShapeObject, size: tuple[int, int]) -> Stamp:
    """The window of an object that lies inside an image of `size` (H, W)."""
    side = min(2 * (int(item.radii.max()) // SUBPIXEL) + 6, *size)
    corner = item.centres // SUBPIXEL - side // 2
    corner = np.clip(corner, 0, np.array([size[1] - side, size[0] - side]))
    span = np.arange(side)
    columns = (corner[:, 0, None] + span)[:, None, :]
    rows = (corner[:, 1, None] + span)[:, :, None]
    half = SUBPIXEL // 2  # pixel centres
    dx = (columns * SUBPIXEL + half - item.centres[:, 0, None, None]).astype(np.float32)
    dy = (rows * SUBPIXEL + half - item.centres[:, 1, None, None]).astype(np.float32)
    radius = item.radii.astype(np.float32)[:, None, None]
    cos = np.float32(cosine(item.tilt)) / np.float32(32768) / radius
    sin = np.float32(sine(item.tilt)) / np.float32(32768) / radius
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    distance = shape_distance(item.look.shape, x, y) * (radius / np.float32(SUBPIXEL))
    corners = [(slice(top, top + side), slice(left, left + side)) for left, top in corner.tolist()]
    return Stamp(corners, x, y, distance, distance <= 0)


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the edge of a shape inside the unit circle (exact near straight edges), negative inside."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - np.float32(0.95)
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.25)
    ax, ay = np.abs(x), np.abs(y)
    if shape == "square":
        return np.maximum(ax, ay) - np.float32(0.78)
    if shape == "diamond":
        return (ax + ay - np.float32(1.0)) * np.float32(0.70710678)
    if shape == "cross":
        arm, reach = np.float32(0.3), np.float32(0.95)
        return np.minimum(np.maximum(ax - reach, ay - arm), np.maximum(ax - arm, ay - reach))
    if shape == "triangle":
        return np.maximum.reduce([x * nx + y * ny for nx, ny in _THREE]) - np.float32(0.5)
    # A five-pointed star is where at least four of the five half-planes agree: the second largest counts.
    largest = second = np.full_like(x, -_FAR)
    for nx, ny in _FIVE:
        side = x * nx + y * ny
        second = np.maximum(second, np.minimum(largest, side))
        largest = np.maximum(largest, side)
    return second - np.float32(0.305)  # tips at 0.305 / cos 72 degrees = 0.99


def regions(stamps: list[Stamp], frames: int, size: tuple[int, int]) -> np.ndarray:
    """bool [N, T, H, W], the whole region of each object, as if nothing stood before it."""
    out = np.zeros((len(stamps), frames, *size), bool)
    for whole, window in zip(out, stamps, strict=True):
        for t, corner in enumerate(window.corners):
            whole[t][corner] = window.inside[t]
    return out


def visible_regions(stamps: list[Stamp], amodal: np.ndarray, front_to_back: list[int]) -> np.ndarray:
    """bool [N, T, H, W], what is left of each region behind the ones before it."""
    visible = amodal.copy()
    for place, i in enumerate(front_to_back):
        for hidden in front_to_back[place + 1 :]:
            for t, corner in enumerate(stamps[i].corners):
                visible[hidden, t][corner] &= ~stamps[i].inside[t]
    return visible


def areas(masks: np.ndarray) -> np.ndarray:
    """Number of true pixels.

    Shapes: masks bool [..., H, W]; out int64 [...].
    """
    flat = masks.reshape(-1, masks.shape[-2] * masks.shape[-1])
    # Row by row: numpy's count over several axes converts the array first.
    return np.array([np.count_nonzero(row) for row in flat], np.int64).reshape(masks.shape[:-2])


def paint(scene: Scene, stamps: list[Stamp], draws: Draws) -> np.ndarray:
    """uint8 [T, H, W, 3], the frames: objects with soft edges over the background, back to front."""
    image = background(scene, draws).astype(np.float32)  # [T, 3, H, W]: long inner loops
    for i in reversed(scene.front_to_back()):
        item, window = scene.objects[i], stamps[i]
        opacity = np.clip(_HALF - window.distance, _ZERO, _ONE)
        shade = _shade(item, window, scene.unit, draws)
        lit = _ONE - np.clip(window.distance + _OUTLINE, _ZERO, _ONE) * np.float32(0.45)
        own, white = shade * lit, (_ONE - shade) * lit * np.float32(250)
        for channel, tint in enumerate(item.tint):
            colour = own * np.float32(tint)
            if item.look.texture == "dotted":
                colour += white
            for t, corner in enumerate(window.corners):
                view = image[t, channel][corner]
                view += (colour[t] - view) * opacity[t]
    return np.ascontiguousarray(np.moveaxis((image + _HALF).astype(np.uint8), 1, -1))


def _shade(item: ShapeObject, window: Stamp, unit: int, draws: Draws) -> np.ndarray:
    """float32 [T, K, K], how much of the object's own colour shows, by its texture."""
    if item.look.texture == "plain":
        return np.ones_like(window.distance)
    # The pattern is fixed to the object and grows with it.
    radius = np.float32(item.radii[0]) / np.float32(unit)
    if item.look.texture == "striped":
        along = draws.choice((window.x, window.y)) * (radius / np.float32(0.066))
        wave = np.abs(along - np.floor(along) - _HALF)
        stripe = np.clip((wave - np.float32(0.25)) * np.float32(6) + _HALF, _ZERO, _ONE)
        return _ONE - np.float32(0.62) * stripe
    scale = radius / np.float32(0.072)
    x, y = window.x * scale, window.y * scale
    x, y = x - np.floor(x) - _HALF, y - np.floor(y) - _HALF
    inside = (np.float32(0.3) - np.sqrt(x * x + y * y)) * np.float32(6) + _HALF
    return _ONE - np.clip(inside, _ZERO, _ONE) * np.float32(0.9)


def background(scene: Scene, draws: Draws) -> np.ndarray:
    """uint8 [T, 3, H, W], a dull textured plane, cut out of a larger picture as the camera pans."""
    height, width = scene.size
    start = scene.camera.min(axis=0)
    reach = scene.camera.max(axis=0) - start
    tall, wide = height + int(reach[1]), width + int(reach[0])
    weight = _pattern(draws.choice(BACKGROUNDS), tall, wide, min(scene.size), draws).astype(np.int32)
    grain = draws.array(-7, 7, (tall, wide)).astype(np.int32)
    grey = draws.between(60, 180)
    step = draws.between(25, 60)
    picture = np.empty((3, tall, wide), np.uint8)
    for plane in picture:
        first = grey + draws.between(-16, 16)
        change = (step if grey < 120 else -step) + draws.between(-12, 12)
        plane[:] = np.clip(first + (change * weight >> 8) + grain, 0, 255)
    corners = (scene.camera - start).tolist()
    return np.stack([picture[:, top : top + height, left : left + width] for left, top in corners])


def _pattern(name: str, tall: int, wide: int, unit: int, draws: Draws) -> np.ndarray:
    """int64 [tall, wide], 0..256, how much of the second colour a place of the background takes."""
    rows, columns = np.arange(tall)[:, None], np.arange(wide)[None, :]
    period = unit * draws.between(160, 300) // 1000
    if name == "gradient":
        a, b = draws.between(0, 256), draws.between(0, 256)
        return (a * rows // tall + b * columns // wide) // 2
    if name == "stripes":
        slope = draws.between(-2, 2)
        return ((2 * rows + slope * columns) // period % 2) * 256
    if name == "checks":
        return ((rows // period + columns // period) % 2) * 256
    knots = draws.array(0, 256, (tall // period + 2, wide // period + 2))
    return _stretch(_stretch(knots, period, tall).T, period, wide).T


def _stretch(knots: np.ndarray, period: int, length: int) -> np.ndarray:
    """Linear interpolation of the rows of `knots`, `period` pixels apart, in whole numbers."""
    cell, part = np.divmod(np.arange(length), period)
    return (knots[cell] * (period - part)[:, None] + knots[cell + 1] * part[:, None]) // period


@lru_cache(maxsize=8)
def _pixel_centres(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32) + np.float32(0.5)
    return columns, rows


def flow(scene: Scene, visible: np.ndarray) -> np.ndarray:
    """float32 [T-1, H, W, 2], x and y displacement in pixels of what each pixel shows to the next frame."""
    pan = -np.diff(scene.camera, axis=0).astype(np.float32)
    out = np.broadcast_to(pan[:, None, None, :], (scene.frames - 1, *scene.size, 2)).copy()
    grid = _pixel_centres(scene.size)
    for i, item in enumerate(scene.objects):
        centres = item.centres.astype(np.float32) / np.float32(SUBPIXEL)
        ratio = (item.radii[1:] / item.radii[:-1] - 1).astype(np.float32)
        for t in range(scene.frames - 1):
            seen = visible[i, t]
            for axis in (0, 1):
                step = centres[t + 1, axis] - centres[t, axis]
                out[t, seen, axis] = step + ratio[t] * (grid[axis][seen] - centres[t, axis])
    return out


def boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of masks.

    Shapes: masks bool [..., H, W]; out int32 [..., 4] as x0, y0, x1, y1 in pixels with x1 and y1 behind the
      last pixel; all zero where a mask is empty.
    """
    out = np.zeros((*masks.shape[:-2], 4), np.int32)
    for axis, place in ((-2, 0), (-1, 1)):  # any over rows leaves columns: x; any over columns leaves rows: y
        line = np.asarray(masks.any(axis=axis))
        out[..., place] = line.argmax(axis=-1)
        out[..., place + 2] = np.where(line.any(axis=-1), line.shape[-1] - line[..., ::-1].argmax(axis=-1), 0)
    return out
