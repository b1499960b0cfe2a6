"""The clips: index to sample, the same bytes for the same index on every machine."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import render as shapes
from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import camera, render
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.scene import GeometricScene, draw_scene
from rvseg_jax.input_pipeline.motion_videos import MotionSample

SPLITS = {"train": 8, "valid": 9, "held_out": 10}
HELD_OUT_LENGTH = 128
_ATTEMPTS = 500  # scenes tried for one clip
# Shares of the image: of each moving object in most frames, and of all of them in any.
_LEAST_SHOWN = 0.012
_MOST_SHOWN = 0.42


@dataclass(frozen=True)
class GeometricShapesConfig:
    """What the clips are like.

    Attributes:
      size: (H, W) in pixels, at least 64 a side.
      frames: frames a clip, 4 to 64.
      still: least and most objects of a clip that stand still.
      moving: least and most objects of a clip that move.
      cameras: what the camera does, values of `camera.CAMERAS`; the held-out split takes them in turn.
      fixed: share of clips with a camera at rest, 0..1, for the splits "train" and "valid".
      empty: share of clips in which nothing moves by itself, for the splits "train" and "valid".
      with_flow: whether samples hold optical flow, about a fifth of the work.
      seed: base seed; the splits are disjoint streams of it.
      split: "train", "valid" or "held_out" (128 clips, each with a moving camera and moving objects).
      length: clips an epoch of "train" and "valid"; any index may be asked for.
    """

    size: tuple[int, int] = (112, 112)
    frames: int = 12
    still: tuple[int, int] = (3, 5)
    moving: tuple[int, int] = (1, 3)
    cameras: tuple[str, ...] = camera.CAMERAS
    fixed: float = 0.1
    empty: float = 0.1
    with_flow: bool = True
    seed: int = 0
    split: Literal["train", "valid", "held_out"] = "train"
    length: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.size) < 64:
            raise ValueError(f"size {self.size} leaves no room to move: give at least 64 pixels a side")
        if not 4 <= self.frames <= 64:
            raise ValueError(f"{self.frames} frames: give 4 to 64, so that steps are neither jumps nor nothing")
        for name, (low, high), least in (("still", self.still, 0), ("moving", self.moving, 1)):
            if not least <= low <= high <= 6:
                raise ValueError(f"{name} {(low, high)}: give a range within {least} to 6")
        unknown = [name for name in self.cameras if name not in camera.CAMERAS]
        if unknown or not self.cameras:
            raise ValueError(f"cameras: {unknown or 'nothing'} given, choose from {', '.join(camera.CAMERAS)}")
        if not (0 <= self.fixed <= 1 and 0 <= self.empty <= 1):
            raise ValueError(f"fixed {self.fixed} and empty {self.empty} are shares from 0 to 1")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: choose from {', '.join(SPLITS)}")
        if self.seed < 0 or self.length < 1:
            raise ValueError(f"seed {self.seed} must not be negative and length {self.length} must be positive")


@dataclass(frozen=True, eq=False, kw_only=True)
class GeometricSample(MotionSample):
    """A clip of a still world with moving objects; the fields of `MotionSample` and these.

    `kind` says what the camera does. Pixel (column i, row j) has its centre at (i + 0.5, j + 0.5).

    Attributes:
      object_masks: bool [N, T, H, W], the visible region of each object, still ones among them.
      moving: bool [N], which objects move; `masks` is their union.
      depth: float32 [T, H, W], z in camera coordinates, in the world's length units.
      poses: float32 [T, 4, 4], camera to world, OpenCV's axes (x right, y down, z forward).
      intrinsics: float32 [T, 3, 3], in pixels.
      flow: float32 [T-1, H, W, 2], displacement x, y in pixels from frames 0..T-2 to the next; None unless asked for.
      backward_flow: float32 [T-1, H, W, 2], the same from frames 1..T-1 to the one before.
      motions: what each object does, "" for still ones.
    """

    object_masks: np.ndarray
    moving: np.ndarray
    depth: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    flow: np.ndarray | None
    backward_flow: np.ndarray | None
    motions: tuple[str, ...]


class GeometricShapes:
    """A source of clips: `GeometricShapes(config)[index]`."""

    def __init__(self, config: GeometricShapesConfig | None = None) -> None:
        self.config = config or GeometricShapesConfig()

    def __len__(self) -> int:
        return HELD_OUT_LENGTH if self.config.split == "held_out" else self.config.length

    def __repr__(self) -> str:
        return f"geometric_shapes/{self.config.split} (seed {self.config.seed})"

    def __getitem__(self, index: int) -> GeometricSample:
        """Clip `index`.

        Raises:
          IndexError: for a negative index, or one beyond the end of the held-out split.
        """
        index, held_out = int(index), self.config.split == "held_out"
        if index < 0 or (held_out and index >= len(self)):
            raise IndexError(f"{self!r} has no sample {index}")
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.config.seed, SPLITS[self.config.split], index, attempt)
            kind, moving = self._kind(index, held_out, draws)
            scene = draw_scene(draws, kind, self.config.frames, self.config.size, self.config.still, moving)
            if scene is None:
                continue
            view = render.look(scene)
            masks = view.masks()
            if _shows(masks[scene.moving]):
                return self._sample(index, kind, scene, view, masks)
        raise RuntimeError(f"no scene fits {self.config.size} at index {index}: allow fewer objects")

    def _kind(self, index: int, held_out: bool, draws: Draws) -> tuple[str, tuple[int, int]]:
        """What the camera does, and how many objects move."""
        cameras = self.config.cameras
        if held_out:
            return cameras[index % len(cameras)], self.config.moving
        kind = camera.STILL if draws.chance(round(100 * self.config.fixed)) else draws.choice(cameras)
        return kind, (0, 0) if draws.chance(round(100 * self.config.empty)) else self.config.moving

    def _sample(
        self, index: int, kind: str, scene: GeometricScene, view: render.View, masks: np.ndarray
    ) -> GeometricSample:
        with_flow = self.config.with_flow
        return GeometricSample(
            frames=render.paint(scene, view),
            masks=masks[scene.moving].any(axis=0),
            video=f"{self.config.split}_{index:06d}",
            frame_names=tuple(f"{t:05d}" for t in range(self.config.frames)),
            kind=kind,
            object_masks=masks,
            moving=scene.moving,
            depth=view.depth,
            poses=scene.camera.poses(),
            intrinsics=scene.camera.intrinsics(),
            flow=render.flow(scene, view, 1) if with_flow else None,
            backward_flow=render.flow(scene, view, -1) if with_flow else None,
            motions=tuple(item.motion for item in scene.objects),
        )


def _shows(moving: np.ndarray) -> bool:
    """Whether all moving objects can be seen, and do not fill the image. Shapes: bool [N, T, H, W]."""
    if not len(moving):
        return True
    areas, frames = shapes.areas(moving), moving.shape[1]
    pixels = moving.shape[-2] * moving.shape[-1]
    seen = np.count_nonzero(areas >= _LEAST_SHOWN * pixels, axis=1)
    in_all = (areas[:, 0] > 0) & (areas[:, -1] > 0)
    return bool((4 * seen >= 3 * frames).all() and in_all.any() and areas.sum(axis=0).max() <= _MOST_SHOWN * pixels)


def geometric_held_out(config: GeometricShapesConfig | None = None) -> GeometricShapes:
    """The 128 held-out clips of a config."""
    return GeometricShapes(replace(config or GeometricShapesConfig(), split="held_out"))


def geometric_list_hash(source: GeometricShapes, count: int | None = None) -> str:
    """SHA-256 of all that the first `count` clips hold, or all; equal hashes mean equal clips."""
    digest = hashlib.sha256()
    for index in range(len(source) if count is None else count):
        clip = source[index]
        for array in (clip.frames, clip.object_masks, clip.moving, clip.depth, clip.poses, clip.intrinsics):
            digest.update(array.tobytes())
        for flow in (clip.flow, clip.backward_flow):
            digest.update(b"" if flow is None else flow.tobytes())
    return digest.hexdigest()
