"""Pi3 by itself: point cloud, depth, confidence and cameras of the frames of a video (arXiv 2507.13347).

The frames are one set without an order, so all of them are in memory at once; the scale is one unknown number for the
video, and so is the frame of reference.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import point_cloud
from rvseg_jax.formats.staging import Staging
from rvseg_jax.models.pi3.model import Pi3
from rvseg_jax.parts.loading import load_part
from rvseg_jax.processing.pi3 import MOST_PIXELS, fitted, fitted_size
from rvseg_jax.processing.video import Video, open_video
from rvseg_jax.systems.geomotion import TINY

# Pixels with a lower confidence, or beside a jump of the depth by this share, are left out of the point cloud.
LEAST_CONFIDENCE = 0.1
_JUMP = 0.03


@dataclass(frozen=True)
class ClipGeometry:
    """What Pi3 says of some frames of a video, in the size in which it saw them.

    Shapes: images uint8 [T, H, W, 3], points float32 [T, H, W, 3], depth and confidence float32 [T, H, W], poses
      float32 [T, 4, 4], intrinsics float32 [T, 3, 3].

    Attributes:
      video, frames: names of the video and of the frames.
      points: in the frame of reference that all cameras share.
      depth: z as the camera sees it.
      confidence: that a point is right, 0..1.
      poses: camera to world, OpenCV's axes (x right, y down, z forward).
      intrinsics: in pixels of this size, fitted to the points; the principal point is the middle.
    """

    video: str
    frames: tuple[str, ...]
    images: np.ndarray
    points: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray

    def trusted(self, least_confidence: float = LEAST_CONFIDENCE) -> np.ndarray:
        """Pixels that belong into a point cloud. Shapes: -> bool [T, H, W]."""
        padded = np.pad(self.depth, ((0, 0), (1, 1), (1, 1)), mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        jump = around.max(axis=(-2, -1)) - around.min(axis=(-2, -1))
        return (self.confidence > least_confidence) & (jump <= _JUMP * self.depth)

    def save(self, folder: str | Path, *, least_confidence: float = LEAST_CONFIDENCE) -> list[Path]:
        """Writes `<video>.ply`, `<video>.geometry.npz` (depth, confidence) and `<video>.cameras.json`.

        Raises: InputError for a folder that cannot be written to.
        """
        kept = self.trusted(least_confidence)
        with Staging(folder) as staging:
            point_cloud.write(staging.path(f"{self.video}.ply"), self.points[kept], self.images[kept])
            with staging.path(f"{self.video}.geometry.npz").open("wb") as file:
                np.savez_compressed(file, depth=self.depth, confidence=self.confidence, frames=np.array(self.frames))
            cameras = [
                {"frame": name, "camera_to_world": pose.tolist(), "intrinsics": matrix.tolist()}
                for name, pose, matrix in zip(self.frames, self.poses, self.intrinsics, strict=True)
            ]
            size = dict(zip(("height", "width"), self.depth.shape[1:], strict=True))
            record = json.dumps({"video": self.video, **size, "cameras": cameras}, indent=1)
            staging.path(f"{self.video}.cameras.json").write_text(record + "\n")
            return [Path(folder) / name for name in staging.results]


class GeometryModel:
    """Pi3, ready for videos."""

    def __init__(self, pi3: Pi3, *, most_pixels: int = MOST_PIXELS) -> None:
        graph, self._weights = nnx.split(pi3)
        self.cfg, self.most_pixels = pi3.cfg, most_pixels

        def run(weights: nnx.State, frames: jax.Array) -> Any:
            model: Any = nnx.merge(graph, weights)
            return model(frames.astype(jnp.float32)[None] / 255)

        self._run = jax.jit(run)

    def __call__(self, video: Any, *, frames: int = 32) -> ClipGeometry:
        """Geometry of at most `frames` frames, evenly spread over the video.

        Args:
          video: what `open_video` takes; read twice where the number of its frames is not known.

        Raises: InputError for a video that cannot be read, or fewer than one frame asked for.
        """
        if frames < 1:
            raise InputError(f"{frames} frames: ask for at least 1")
        clip = open_video(video)
        size = fitted_size(clip.height, clip.width, patch_size=self.cfg.patch_size, most_pixels=self.most_pixels)
        names, images = _spread(clip, frames, size)
        found = self._run(self._weights, images)
        local, poses = np.asarray(found.local_points[0]), np.asarray(found.camera_poses[0])
        return ClipGeometry(
            clip.name,
            names,
            images,
            np.asarray(found.points[0]),
            local[..., 2],
            np.asarray(jax.nn.sigmoid(found.conf[0])),
            poses,
            intrinsics_of(local),
        )


def load(checkpoint: Path | None = None, *, dtype: str | None = None, mesh: Any = None) -> GeometryModel:
    """Pi3 from a converted checkpoint (`rvseg convert convert pi3 ...`), or the bundled tiny one.

    Raises:
      InputError: if the folder is no checkpoint, or holds no Pi3.
    """
    pi3 = cast(Pi3, load_part(TINY if checkpoint is None else checkpoint, "pi3", dtype=dtype, mesh=mesh))
    # The bundled one has seen squares of 112 pixels only.
    return GeometryModel(pi3, most_pixels=min(MOST_PIXELS, pi3.cfg.encoder.image_size**2))


def intrinsics_of(local_points: np.ndarray) -> np.ndarray:
    """Cameras with the middle as principal point that explain points best, by least squares in x / z and y / z.

    Shapes: local_points [T, H, W, 3] -> float32 [T, 3, 3] in pixels.
    """
    height, width = local_points.shape[1:3]
    rays = local_points[..., :2].astype(np.float64) / local_points[..., 2:]
    found = np.zeros((len(local_points), 3, 3), np.float32)
    found[:, 2, 2] = 1
    for axis, length in ((0, width), (1, height)):
        places = np.arange(length) + 0.5 - length / 2
        places = places[None, :] if axis == 0 else places[:, None]
        ray = rays[..., axis]
        found[:, axis, axis] = np.sum(places**2 * np.ones_like(ray), axis=(1, 2)) / np.sum(places * ray, axis=(1, 2))
        found[:, axis, 2] = length / 2
    return found


def _spread(video: Video, most: int, size: tuple[int, int]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and images of at most `most` frames, evenly spread."""
    count = video.count if video.count is not None else sum(1 for _ in video)
    chosen: Sequence[int] = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
    names, images = [], []
    for index, frame in enumerate(video.frames()):
        if index in chosen:
            names.append(frame.name)
            images.append(fitted(frame.image, size))
    return tuple(names), np.stack(images)
