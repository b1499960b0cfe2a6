"""What a moving camera sees of a world of flat surfaces: depth, objects, pixels, and the exact optical flow.

Rays are cut with every surface; the nearest one counts. All is element-wise float32 on values that were found in
float64, so that the same scene gives the same bytes on every machine.
"""

from dataclasses import dataclass

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.camera import Camera, times, transposed, turned
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.scene import GeometricScene, Surface
from rvseg_jax.input_pipeline.datasets.moving_shapes.render import shape_distance

_NEVER = np.float32(1e6)  # depth of what no ray meets
_HALF = np.float32(0.5)


@dataclass(frozen=True, eq=False)
class Window:
    """A surface in the part of the image that it can show in, in every frame.

    Attributes:
      places: [T] pairs of slices, rows and columns in the image.
      x, y: float32 [T, h, w], where a ray meets the surface's plane, in length units along its axes.
      depth: float32 [T, h, w], z of that place.
      extent: float32 [T, h, w], about the length on the surface that a pixel covers.
      distance: float32 [T, h, w], pixels to the shape's edge, negative inside; None for an endless plane.
    """

    places: list[tuple[slice, slice]]
    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    extent: np.ndarray
    distance: np.ndarray | None


@dataclass(frozen=True, eq=False)
class View:
    """A scene as its camera sees it.

    Attributes:
      walls, objects: window of each surface.
      depth: float32 [T, H, W], z in camera coordinates of what a pixel shows.
      label: int8 [T, H, W], the object that a pixel shows, -1 for the world.
      wall: int8 [T, H, W], the wall that a pixel shows or would show without the objects.
      order: the objects from the farthest to the nearest, in mid-clip.
    """

    walls: list[Window]
    objects: list[Window]
    depth: np.ndarray
    label: np.ndarray
    wall: np.ndarray
    order: list[int]

    def masks(self) -> np.ndarray:
        """bool [N, T, H, W], the visible region of each object."""
        return self.label == np.arange(len(self.objects), dtype=np.int8)[:, None, None, None]


def look(scene: GeometricScene) -> View:
    """Cuts every ray with every surface."""
    camera = scene.camera
    seen = [item.seen_from(camera) for item in scene.objects]
    walls = [_window(camera, item.seen_from(camera)) for item in scene.walls]
    objects = [_window(camera, item) for item in seen]
    depth, wall = walls[0].depth.copy(), np.zeros(walls[0].depth.shape, np.int8)
    for number, window in enumerate(walls[1:], 1):
        nearer = window.depth < depth
        depth[nearer], wall[nearer] = window.depth[nearer], number
    middle = len(camera.focal) // 2
    order = sorted(range(len(seen)), key=lambda i: -float(seen[i].centre[middle, 2]))
    label = np.full(depth.shape, -1, np.int8)
    for i in order:
        window = objects[i]
        assert window.distance is not None
        inside = window.distance <= 0
        for t, place in enumerate(window.places):
            nearer = inside[t] & (window.depth[t] < depth[t][place])
            depth[t][place][nearer] = window.depth[t][nearer]
            label[t][place][nearer] = i
    return View(walls, objects, depth, label, wall, order)


def paint(scene: GeometricScene, view: View) -> np.ndarray:
    """uint8 [T, H, W, 3], the frames; edges of objects are soft."""
    image = np.empty((3, view.depth.size), np.float32)
    for number, (item, window) in enumerate(zip(scene.walls, view.walls, strict=True)):
        shown = np.flatnonzero(view.wall == number)
        for plane, colours in zip(image, _colours(item, window, shown), strict=True):
            plane[shown] = colours
    image = image.reshape(3, *view.depth.shape)
    behind = np.where(view.wall == 0, view.walls[0].depth, view.walls[1].depth)
    for i in view.order:
        item, window = scene.objects[i], view.objects[i]
        assert window.distance is not None
        near = np.flatnonzero(window.distance < _HALF)
        at = _flat_places(window, view.depth.shape)[near]
        depth, opacity = window.depth.take(near), np.minimum(_HALF - window.distance.take(near), np.float32(1))
        seen = depth < behind.take(at)
        at, share = at[seen], opacity[seen]
        for plane, colours in zip(image, _colours(item, window, near[seen]), strict=True):
            below = plane.take(at)
            plane.ravel()[at] = below + (colours - below) * share
        covered = share >= _HALF
        behind.ravel()[at[covered]] = depth[seen][covered]
    return np.ascontiguousarray(np.moveaxis((image + _HALF).astype(np.uint8), 0, -1))


def _flat_places(window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """Place in the flattened clip of `shape` [T, H, W] of every pixel of a window. Shapes: -> int64 [T * h * w]."""
    _, height, width = shape
    frames, tall, wide = window.depth.shape
    corners = np.array(
        [(t * height + rows.start) * width + columns.start for t, (rows, columns) in enumerate(window.places)]
    )
    inner = np.arange(tall)[:, None] * width + np.arange(wide)
    return (corners[:, None] + inner.ravel()).ravel()


def _colours(item: Surface, window: Window, shown: np.ndarray) -> np.ndarray:
    """float32 [3, M], colours of the pixels `shown`, places in the flattened window."""
    scale = np.float32(1 / item.tile)
    x, y, extent = (array.take(shown) * scale for array in (window.x, window.y, window.extent))
    return item.texture.sample(x, y, extent)


def flow(scene: GeometricScene, view: View, step: int) -> np.ndarray:
    """float32 [T-1, H, W, 2], where what a pixel shows lies in the next frame (step 1), or in the one before (-1).

    Displacements in pixels, x and y. Forward flow starts at frames 0..T-2, backward flow at frames 1..T-1.
    """
    camera = scene.camera
    start, end = (slice(0, -1), slice(1, None)) if step == 1 else (slice(1, None), slice(0, -1))
    columns, rows = pixel_centres(camera.size)
    depth = view.depth[start]
    inverse = (1 / camera.focal[start]).astype(np.float32)[:, None, None]
    points = np.stack(
        [
            (columns - np.float32(camera.centre[0])) * inverse * depth,
            (rows - np.float32(camera.centre[1])) * inverse * depth,
            depth,
        ]
    )
    world = times(transposed(camera.rotation[end]), camera.rotation[start])
    shift = turned(transposed(camera.rotation[end]), camera.position[start] - camera.position[end])
    target = _moved(points, world, shift)
    for i in np.flatnonzero(scene.moving):
        seen = scene.objects[i].seen_from(camera)
        own = times(seen.axes[end], transposed(seen.axes[start]))
        shift = seen.centre[end] - turned(own, seen.centre[start])
        shown = view.label[start] == i
        frame = np.nonzero(shown)[0]
        target[:, shown] = _moved(points[:, shown], own[frame], shift[frame])
    focal = camera.focal[end].astype(np.float32)[:, None, None]
    x = target[0] / target[2] * focal + np.float32(camera.centre[0]) - columns
    y = target[1] / target[2] * focal + np.float32(camera.centre[1]) - rows
    return np.stack([x, y], -1)


def _moved(points: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Rigidly moved points. Shapes: points [3, L, ...], rotation [L, 3, 3], shift [L, 3] -> [3, L, ...]."""
    ends = (...,) + (None,) * (points.ndim - 2)
    r, s = rotation.astype(np.float32), shift.astype(np.float32)
    x, y, z = points
    return np.stack(
        [r[:, k, 0][ends] * x + r[:, k, 1][ends] * y + r[:, k, 2][ends] * z + s[:, k][ends] for k in range(3)]
    )


def pixel_centres(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the centre of every pixel. Shapes: float32 [1, W] and [H, 1]."""
    height, width = size
    return (np.arange(width, dtype=np.float32) + _HALF)[None, :], (np.arange(height, dtype=np.float32) + _HALF)[:, None]


def _window(camera: Camera, item: Surface) -> Window:
    """Where the rays of a window meet a surface that is given in camera coordinates."""
    places, columns, rows = _extent(camera, item)
    focal = (1 / camera.focal).astype(np.float32)[:, None, None]
    dx = (columns - np.float32(camera.centre[0])) * focal
    dy = (rows - np.float32(camera.centre[1])) * focal
    across, down, normal = (_dot(item.axes[:, :, k], dx, dy) for k in range(3))
    offsets = [(item.axes[:, :, k] * item.centre) for k in range(3)]
    across_at, down_at, normal_at = (
        (part[:, 0] + part[:, 1] + part[:, 2]).astype(np.float32)[:, None, None] for part in offsets
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = normal_at / normal
    # A ray beside or away from the plane meets nothing.
    depth = np.where((depth > 0) & (depth < _NEVER), depth, _NEVER)
    x, y = across * depth - across_at, down * depth - down_at
    length = np.sqrt(dx * dx + dy * dy + np.float32(1))
    extent = depth * focal * length / np.maximum(np.abs(normal), np.float32(1e-3))
    if not item.shape:
        return Window(places, x, y, depth, extent, None)
    scale = np.float32(1 / item.radius)
    distance = shape_distance(item.shape, x * scale, y * scale) * np.float32(item.radius) / (depth * focal)
    return Window(places, x, y, depth, extent, distance)


def _dot(axis: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Products of an axis with the rays (dx, dy, 1). Shapes: axis [T, 3], dx [T, 1, w], dy [T, h, 1] -> [T, h, w]."""
    a, b, c = axis.astype(np.float32).T[:, :, None, None]
    product: np.ndarray = a * dx + b * dy + c
    return product


def _extent(camera: Camera, item: Surface) -> tuple[list[tuple[slice, slice]], np.ndarray, np.ndarray]:
    """Places of a window, and the pixel centres in it as [T, 1, w] columns and [T, h, 1] rows."""
    frames, (height, width) = len(camera.focal), camera.size
    if not item.shape:
        columns, rows = pixel_centres(camera.size)
        everywhere = [(slice(0, height), slice(0, width))] * frames
        return everywhere, np.broadcast_to(columns, (frames, 1, width)), np.broadcast_to(rows, (frames, height, 1))
    # Tilted shapes come nearer at one side, by half their radius at most.
    reach = camera.focal * item.radius / (item.centre[:, 2] - 0.5 * item.radius)
    side = 2 * int(np.ceil(reach.max())) + 4
    tall, wide = min(side, height), min(side, width)
    middle = np.floor(camera.project(item.centre[:, None])[:, 0]).astype(np.int64)
    left = np.clip(middle[:, 0] - wide // 2, 0, width - wide)
    top = np.clip(middle[:, 1] - tall // 2, 0, height - tall)
    places = [(slice(a, a + tall), slice(b, b + wide)) for a, b in zip(top.tolist(), left.tolist(), strict=True)]
    columns = (left[:, None] + np.arange(wide)).astype(np.float32)[:, None, :] + _HALF
    rows = (top[:, None] + np.arange(tall)).astype(np.float32)[:, :, None] + _HALF
    return places, columns, rows
