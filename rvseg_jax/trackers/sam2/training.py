"""Fine-tuning SAM 2 on masks of videos, or training a small one from nothing; the protocol is `training.tasks.Task`.

tracker.sam2   objects are prompted in the first frame of a clip and followed through the others
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers import stack
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import SHARDING, Sam2
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.sam2 import DEVIATION, MEAN
from rvseg_jax.trackers import data
from rvseg_jax.trackers.rows import ClipRow
from rvseg_jax.trackers.sam2 import Sam2Tracker
from rvseg_jax.trackers.sam2.clips import clip_losses, simulated_prompts, taught, track_clip
from rvseg_jax.trackers.sam2.losses import TrackerLossConfig
from rvseg_jax.trackers.validation import region_similarity

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Sam2TrainingConfig:
    """What is trained on what.

    Attributes:
      model: sizes and options.
      clips: training clips.
      prompts: how often an object is given by its mask, by a click, and by a box.
      losses: weights of the losses.
      pretrained: folder of an earlier export or of a converted checkpoint; "" starts from nothing.
      remat: what the backward pass computes again, see `track_clip`.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    model: Sam2Config = Sam2Config()
    clips: data.ClipsConfig = data.ClipsConfig()
    prompts: tuple[float, float, float] = (0.5, 0.25, 0.25)
    losses: TrackerLossConfig = field(default_factory=TrackerLossConfig)
    pretrained: str = ""
    remat: stack.Remat = "full"
    validation_clips: int = 16

    def __post_init__(self) -> None:
        if min(self.prompts) < 0 or abs(sum(self.prompts) - 1) > 1e-6:
            raise ValueError(f"prompts {self.prompts} must be shares of mask, click and box that add to 1")


class Sam2Task:
    """The losses of `trackers.sam2.clips` on clips of videos."""

    Config = Sam2TrainingConfig
    sharding_table: Table = SHARDING

    def __init__(self, config: Sam2TrainingConfig, *, precision: Precision) -> None:
        self.config = config
        self._config = replace(config.model, precision=precision)
        self._graph = parameters.graph_of(self._model)
        self._tracker: Sam2Tracker | None = None

    def _model(self, rngs: nnx.Rngs) -> Sam2:
        return Sam2(self._config, rngs=rngs)

    def init(self, key: jax.Array) -> Params:
        """Parameters of a new model."""
        return parameters.initialised(self._model, key)

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters, where the recipe names a folder."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, "sam2", self._config.precision, target)
        return parameters.place_matching(given, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of a batch of clips.

        Shapes: batch {"frames": uint8 [V, T, S, S, 3], "masks": bool [V, O, T, S, S], "valid": bool [V, O]}.
        """
        model: Sam2 = nnx.merge(self._graph, params)
        pixels = batch["frames"].astype(jnp.float32) / 255
        images = jnp.moveaxis((pixels - MEAN) / DEVIATION, 1, 0)
        videos, objects, frames = batch["masks"].shape[:3]
        masks = jnp.moveaxis(batch["masks"].reshape(videos * objects, frames, *batch["masks"].shape[3:]), 1, 0)
        prompts = self._prompts(key, masks[0])
        output = track_clip(model, images, prompts, remat=self.config.remat)
        counted = jnp.broadcast_to(batch["valid"].reshape(-1), (frames, videos * objects))
        losses = clip_losses(self.config.losses, output, masks, taught(prompts, counted))
        return losses.pop("total"), losses

    def _prompts(self, key: jax.Array, masks: jax.Array) -> TrackPrompts:
        """A mask, a click or a box for each row, by chance. Shapes: masks bool [B, S, S]."""
        own, *keys = jax.random.split(key, 4)
        low = self._config.low_res_size
        kinds = [
            simulated_prompts(one, masks, kind, low_res_size=low)  # type: ignore[arg-type]
            for one, kind in zip(keys, ("mask", "click", "box"), strict=True)
        ]
        drawn = jax.random.choice(own, 3, (masks.shape[0],), p=jnp.asarray(self.config.prompts))

        def chosen(*leaves: jax.Array) -> jax.Array:
            index = drawn.reshape(1, -1, *(1,) * (leaves[0].ndim - 1))
            return jnp.take_along_axis(jnp.stack(leaves), index, axis=0)[0]

        return jax.tree.map(chosen, *kinds)

    def source(self, split: str) -> Any:
        """Videos of the split."""
        return data.source(self.config.clips, split)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A clip of a video."""
        clips = self.config.clips
        return ClipRow(
            frames=clips.frames,
            objects=clips.objects,
            size=self._config.image_size,
            longest_stride=clips.longest_stride,
            crop=clips.crop,
        )

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity on validation clips, from first masks."""
        del step
        state = nnx.split(parameters.assembled(self._model, params))[1]
        if self._tracker is None:
            self._tracker = Sam2Tracker(nnx.merge(self._graph, state))
        self._tracker.programs.parameters = state
        clips = self.source("validation")
        return region_similarity(self._tracker, [clips[index] for index in range(self.config.validation_clips)])

    def export(self, params: Params, folder: Path) -> None:
        """Writes the model; see `parts.bundle`."""
        bundle.save(folder, "sam2", {"sam2": parameters.assembled(self._model, params)}, settings={})
