"""Pi3 on clips with true depth and cameras; the protocol is `training.tasks.Task`.

    geomotion.geometry   points, normals, cameras and confidence, up to one scale a clip

The second stage of a GeoMotion from nothing, and how Pi3 itself is trained further; the published model takes Pi3's
weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.layers import stack
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import SHARDING, Geometry, Pi3
from rvseg_jax.parallel.rules import Table, prefixed
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.systems.geomotion import geometry_losses as losses
from rvseg_jax.systems.geomotion.rows import GeometryRow, camera_points

Batch = Mapping[str, jax.Array]
_FLAT = 0.05


@dataclass(frozen=True)
class GeometryTrainingConfig:
    """What is trained on what; weights of the losses are upstream's.

    Attributes:
      pi3: sizes of the network.
      clips: training clips; those of validation are like them.
      frames: of a clip.
      normal, translation, rotation, confidence: weights beside the points' 1.
      remat: what the backward pass computes again.
      pretrained: folder of an earlier export or of a converted checkpoint; "" starts from nothing.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    pi3: Pi3Config = Pi3Config()
    clips: GeometricShapesConfig = GeometricShapesConfig(with_flow=False)
    frames: int = 4
    normal: float = 1.0
    translation: float = 10.0
    rotation: float = 0.1
    confidence: float = 0.05
    remat: stack.Remat = "none"
    pretrained: str = ""
    validation_clips: int = 16


class GeometryTask:
    """Pi3's losses, section 3.3 of arXiv 2507.13347."""

    Config = GeometryTrainingConfig
    sharding_table: Table = prefixed(SHARDING, "pi3")

    def __init__(self, config: GeometryTrainingConfig, *, precision: Precision) -> None:
        self.config, self._precision = config, precision
        self._model = lambda rngs: Pi3(replace(config.pi3, precision=precision), rngs=rngs)
        self._graph = parameters.graph_of(self._model)
        self._run = jax.jit(lambda params, frames: self._geometry(params, frames))

    def init(self, key: jax.Array) -> Params:
        """{"pi3": ...}; all points begin near a plane.

        Depths are exponentials: spread over decades, as a new head would have them, a few of them set the scale of the
        clip, the others count as zero, and their gradient with them.
        """
        made = parameters.initialised(self._model, key)
        head = made["point_head"]["proj"]
        head["kernel"] = _FLAT * head["kernel"]
        return {"pi3": made}

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters, where the recipe names a folder."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, "pi3", self._precision, target["pi3"])
        return parameters.place_matching({"pi3": given}, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Shapes: batch {"frames": uint8 [B, T, H, W, 3], "points": [B, T, H, W, 3], "poses": [B, T, 4, 4]}."""
        del key
        cfg = self.config
        unit = jnp.mean(batch["points"][..., 2], axis=(1, 2, 3))  # the mean depth of a clip
        truth = batch["points"] / unit[:, None, None, None, None]
        poses = batch["poses"].at[..., :3, 3].divide(unit[:, None, None])
        found = self._geometry(params, batch["frames"])
        assert found.local_points is not None and found.conf is not None
        scale = losses.best_scale(found.local_points, truth)
        points = found.local_points * scale[:, None, None, None, None]
        cameras = found.camera_poses.at[..., :3, 3].multiply(scale[:, None, None])
        translation, rotation = losses.camera_losses(cameras, poses)
        terms = {
            "points": losses.point_loss(points, truth),
            "normals": losses.normal_loss(points, truth),
            "translation": translation,
            "rotation": rotation,
            "confidence": losses.confidence_loss(found.conf, points, truth),
        }
        weights = (1.0, cfg.normal, cfg.translation, cfg.rotation, cfg.confidence)
        return sum((w * term for w, term in zip(weights, terms.values(), strict=True)), jnp.zeros(())), terms

    def source(self, split: str) -> GeometricShapes:
        """Clips of the split."""
        return GeometricShapes(replace(self.config.clips, split="train" if split == "train" else "valid"))

    def transform(self, split: str) -> GeometryRow:
        """Frames of a clip."""
        del split
        return GeometryRow(self.config.frames)

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """On validation clips: error over depth of scaled points, that of a plane in their place, and of rotations."""
        del step
        clips = self.source("validation")
        scores: dict[str, list[float]] = {"point_error": [], "of_a_plane": [], "rotation_degrees": []}
        for index in range(self.config.validation_clips):
            clip = clips[index]
            places = np.linspace(0, len(clip) - 1, self.config.frames).round().astype(int)
            truth = jnp.asarray(camera_points(clip.depth[places], clip.intrinsics[places]))[None]
            found = self._run(params, clip.frames[places][None])
            plane = truth / truth[..., 2:]
            for name, points in (("point_error", found.local_points), ("of_a_plane", plane)):
                scaled = points * losses.best_scale(points, truth)[:, None, None, None, None]
                scores[name].append(float(losses.point_loss(scaled, truth)))
            angle = losses.camera_losses(found.camera_poses, jnp.asarray(clip.poses[places])[None])[1]
            scores["rotation_degrees"].append(float(np.degrees(angle)))
        return {name: float(np.mean(values)) for name, values in scores.items()}

    def export(self, params: Params, folder: Path) -> None:
        """Writes the network for the next stage; see `parts.bundle`."""
        bundle.save(folder, "geomotion", {"pi3": parameters.assembled(self._model, params["pi3"])})

    def _geometry(self, params: Params, frames: jax.Array) -> Geometry:
        model: Any = nnx.merge(self._graph, params["pi3"])
        return model(frames.astype(jnp.float32) / 255, remat=self.config.remat)
