"""A pinhole camera that moves: where it stands, where it looks, and how far it is zoomed in.

OpenCV's axes: x to the right, y down, z forward. Pixel (column i, row j) has its centre at (i + 0.5, j + 0.5).
Rotations and products are written out in element-wise float64, which IEEE 754 fixes to the bit; `@` is not.
"""

from dataclasses import dataclass, replace

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine

# What the camera does over a clip. All of them but "still" move it sideways or forward, so that things at different
# depths move differently in the image.
CAMERAS = ("truck", "dolly", "orbit", "pan", "zoom", "free")
STILL = "still"

# How far the nearest things move against the farthest ones, in thousandths of the image's short side over the clip.
PARALLAX = (280, 480)
_DOLLY = (900, 1500)  # way of a dolly in thousandths of a length unit
_PAN = (80, 200)  # turn of a pan in thousandths of a radian, about 5 to 11 degrees
# How much of the sideways way is turned back, in hundredths of what keeps a place in the middle of the world still.
_HELD = {"orbit": (80, 120), "truck": (30, 60), "dolly": (0, 60), "pan": (60, 90), "zoom": (50, 90), "free": (50, 90)}
_MIDDLE = (3600, 5200)  # depth of that place in thousandths of a length unit
_ZOOM = (120, 190)  # ratio of the focal lengths of a zoom in hundredths
_SHAKE = 5  # of a hand, in thousandths of a radian and of a length unit
_KNOT = 3  # frames from one knot of it to the next
# Depths at which parallax is measured.
NEAR, FAR = 2.8, 9.0


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera over a clip.

    Attributes:
      size: (H, W) of the image in pixels.
      rotation: float64 [T, 3, 3], camera to world.
      position: float64 [T, 3], in the world's length units.
      focal: float64 [T], in pixels.
    """

    size: tuple[int, int]
    rotation: np.ndarray
    position: np.ndarray
    focal: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the principal point in pixels: the middle of the image."""
        return self.size[1] / 2, self.size[0] / 2

    def poses(self) -> np.ndarray:
        """float32 [T, 4, 4], camera to world."""
        out = np.zeros((len(self.focal), 4, 4), np.float32)
        out[:, :3, :3], out[:, :3, 3], out[:, 3, 3] = self.rotation, self.position, 1
        return out

    def intrinsics(self) -> np.ndarray:
        """float32 [T, 3, 3], camera coordinates to homogeneous pixel coordinates."""
        out = np.zeros((len(self.focal), 3, 3), np.float32)
        out[:, 0, 0] = out[:, 1, 1] = self.focal
        out[:, :2, 2], out[:, 2, 2] = self.centre, 1
        return out

    def after(self, frames: int) -> "Camera":
        """The camera without its first `frames` frames."""
        return replace(
            self, rotation=self.rotation[frames:], position=self.position[frames:], focal=self.focal[frames:]
        )

    def sees(self, points: np.ndarray) -> np.ndarray:
        """World points in camera coordinates. Shapes: points [T, P, 3] -> [T, P, 3]."""
        return turned(transposed(self.rotation)[:, None], points - self.position[:, None])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Columns and rows in pixels of points in camera coordinates. Shapes: points [T, P, 3] -> [T, P, 2]."""
        return points[..., :2] / points[..., 2:] * self.focal[:, None, None] + np.array(self.centre)


def transposed(matrices: np.ndarray) -> np.ndarray:
    """Shapes: [..., 3, 3] -> [..., 3, 3]."""
    return np.swapaxes(matrices, -1, -2)


def times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Product of matrices. Shapes: [..., M, 3], [..., 3, N] -> [..., M, N]."""
    a, b, c = (left[..., :, i : i + 1] * right[..., i : i + 1, :] for i in range(3))
    product: np.ndarray = a + b + c
    return product


def turned(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rotated vectors. Shapes: rotation [..., 3, 3], vectors [..., 3] -> [..., 3]."""
    return times(rotation, vectors[..., None])[..., 0]


def rotations(pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Rotation matrices of small turns about x, y and z, by the unit quaternion (1, pitch, yaw, roll) / 2.

    Shapes: float64 [T] each, in radians (to third order) -> [T, 3, 3].
    """
    x, y, z = pitch / 2, yaw / 2, roll / 2
    scale = 2 / (1 + x * x + y * y + z * z)
    rows = (
        (1 - scale * (y * y + z * z), scale * (x * y - z), scale * (x * z + y)),
        (scale * (x * y + z), 1 - scale * (x * x + z * z), scale * (y * z - x)),
        (scale * (x * z - y), scale * (y * z + x), 1 - scale * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def progress(frames: int, ease: int) -> np.ndarray:
    """float64 [T] from -0.5 to 0.5, at even speed (ease 0) or slow at both ends (ease 100: from and to rest)."""
    even = np.arange(frames) / (frames - 1) - 0.5
    return even + (even * 0.5 - 2 * even * even * even) * (ease / 100)


def draw_camera(draws: Draws, kind: str, frames: int, size: tuple[int, int]) -> Camera:
    """A camera of `kind`, one of `CAMERAS` or "still", near the world's origin and looking forward in mid-clip."""
    side = min(size)
    focal = side * draws.between(900, 1250) / 1000
    along = progress(frames, draws.below(50))
    position, turn, zoom = np.zeros((frames, 3)), np.zeros((frames, 3)), np.ones(frames)
    if kind != STILL:
        shift = draws.between(*PARALLAX) / 1000 * side / focal / (1 / NEAR - 1 / FAR)
        angle = draws.below(1024)
        # Mostly to the side: things on the ground are told apart by it.
        way = np.array([int(cosine(angle)), int(sine(angle)) // 2]) / 32768 * shift
        if kind in ("dolly", "free"):
            position[:, 2] = along * (draws.choice((-1, 1)) * draws.between(*_DOLLY) / 1000)
            way = way * (0.55 if kind == "dolly" else 0.9)
        position[:, :2] = along[:, None] * way
        held = draws.between(*_HELD[kind]) / 100 / (draws.between(*_MIDDLE) / 1000)
        turn[:, 1], turn[:, 0] = -along * way[0] * held, along * way[1] * held
        if kind in ("pan", "free"):
            turn[:, 1] += along * (draws.choice((-1, 1)) * draws.between(*_PAN) / 1000)
            turn[:, 0] += along * (draws.choice((-1, 1)) * draws.between(0, _PAN[0]) / 1000)
            turn[:, 2] += along * (draws.between(-60, 60) / 1000)
        if kind == "zoom":
            ratio = draws.between(*_ZOOM) / 100 - 1
            zoom = 1 + (along if draws.chance(50) else -along) * ratio / (1 + ratio / 2)
        if draws.chance(50):
            turn += _shake(draws, frames)
            position += _shake(draws, frames)
    return Camera(size, rotations(*turn.T), position, focal * zoom)


def _shake(draws: Draws, frames: int) -> np.ndarray:
    """float64 [T, 3], the small smooth way of a hand: a Catmull-Rom curve through random knots."""
    place, part = np.divmod(np.arange(frames), _KNOT)
    knots = draws.array(-_SHAKE, _SHAKE, (int(place[-1]) + 4, 3)) / 1000
    t = (part / _KNOT)[:, None]
    a, b, c, d = (knots[place + step] for step in range(4))
    curve: np.ndarray = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve
