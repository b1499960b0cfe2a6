"""Training rows from clips with exact geometry, made in data workers: numpy only, so that no worker starts JAX."""

from dataclasses import dataclass

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricSample


@dataclass(frozen=True)
class FlowRow:
    """Pairs of neighbouring frames with the true flow between them.

    Attributes:
      pairs: of a clip, drawn without repeats from its steps in both directions, P.
    """

    pairs: int = 4

    def __call__(self, clip: GeometricSample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Shapes: -> {"first", "second": uint8 [P, H, W, 3], "flow": float32 [P, H, W, 2]}.

        Raises:
          ValueError: for a clip without flow, or with fewer steps.
        """
        if clip.flow is None or clip.backward_flow is None:
            raise ValueError(f"{clip.video} has no flow: make clips with it")
        steps = len(clip.flow)
        if 2 * steps < self.pairs:
            raise ValueError(f"{clip.video} has {2 * steps} pairs of neighbours, fewer than {self.pairs}")
        chosen = rng.permutation(2 * steps)[: self.pairs]
        before, back = chosen % steps, chosen >= steps
        flows = np.where(back[:, None, None, None], clip.backward_flow[before], clip.flow[before])
        first, second = clip.frames[before + back], clip.frames[before + ~back]
        if rng.random() < 0.5:
            first, second, flows = first[:, :, ::-1], second[:, :, ::-1], flows[:, :, ::-1] * (-1.0, 1.0)
        return {
            "first": np.ascontiguousarray(first),
            "second": np.ascontiguousarray(second),
            "flow": np.ascontiguousarray(flows, np.float32),
        }


@dataclass(frozen=True)
class GeometryRow:
    """Some frames of a clip with depth and cameras.

    Attributes:
      frames: of a clip, T, drawn without repeats and in any order, as Pi3 knows none.
    """

    frames: int = 4

    def __call__(self, clip: GeometricSample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Shapes: -> {"frames": uint8 [T, H, W, 3], "points": float32 [T, H, W, 3], "poses": float32 [T, 4, 4]}.

        `points` are in the coordinates of each frame's camera, `poses` camera to world, both in the world's units.
        """
        chosen = rng.permutation(len(clip))[: self.frames]
        return {
            "frames": np.ascontiguousarray(clip.frames[chosen]),
            "points": camera_points(clip.depth[chosen], clip.intrinsics[chosen]),
            "poses": clip.poses[chosen].astype(np.float32),
        }


def camera_points(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points of the pixel centres as their cameras see them, OpenCV's axes.

    Shapes: depth [T, H, W], intrinsics [T, 3, 3] in pixels, with pixel (i, j) centred at (i + 0.5, j + 0.5)
      -> float32 [T, H, W, 3].
    """
    height, width = depth.shape[1:]
    rows, columns = np.mgrid[:height, :width] + 0.5
    focal = intrinsics[:, [0, 1], [0, 1]][:, None, None]
    centre = intrinsics[:, :2, 2][:, None, None]
    rays = (np.stack([columns, rows], axis=-1)[None] - centre) / focal
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
    return (rays * depth[..., None]).astype(np.float32)
