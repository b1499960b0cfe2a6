"""Training XMem on clips of videos; the protocol is `training.tasks.Task`.

tracker.xmem   masks of the first frame are carried through the others, from a few frames before each
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.models.xmem.clip import draw_choices, segment_clip
from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.network import SHARDING, XMem
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.xmem import DEVIATION, MEAN
from rvseg_jax.trackers import data
from rvseg_jax.trackers.rows import ClipRow
from rvseg_jax.trackers.validation import region_similarity
from rvseg_jax.trackers.xmem import XMemTracker
from rvseg_jax.trackers.xmem.losses import BootstrapSchedule, clip_losses

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class XMemTrainingConfig:
    """What is trained on what.

    Attributes:
      model: sizes.
      clips: training clips.
      size: side of the square clips in pixels, a multiple of 16.
      num_ref_frames: frames that a frame reads from, at most.
      deep_update_prob: how often the sensory memory gets a deep update.
      bootstrap: share of the pixels that counts in the cross entropy, by step.
      pretrained: folder of an earlier export or of a converted checkpoint; "" starts from nothing.
      remat: whether the backward pass computes each frame again.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    model: XMemConfig = XMemConfig()
    clips: data.ClipsConfig = data.ClipsConfig()
    size: int = 384
    num_ref_frames: int = 3
    deep_update_prob: float = 0.2
    bootstrap: BootstrapSchedule = field(default_factory=BootstrapSchedule)
    pretrained: str = ""
    remat: bool = False
    validation_clips: int = 16

    def __post_init__(self) -> None:
        if self.size % 16 or self.size < 16:
            raise ValueError(f"size {self.size} must be a multiple of 16")


class XMemTask:
    """Bootstrapped cross entropy and Dice on clips of videos."""

    Config = XMemTrainingConfig
    sharding_table: Table = SHARDING

    def __init__(self, config: XMemTrainingConfig, *, precision: Precision) -> None:
        self.config = config
        self._config = replace(config.model, precision=precision)
        self._graph = parameters.graph_of(self._model)
        self._tracker: XMemTracker | None = None

    def _model(self, rngs: nnx.Rngs) -> XMem:
        return XMem(self._config, rngs=rngs)

    def init(self, key: jax.Array) -> Params:
        """Parameters of a new model."""
        return parameters.initialised(self._model, key)

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters, where the recipe names a folder."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, "xmem", self._config.precision, target)
        return parameters.place_matching(given, target)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of a batch of clips.

        Shapes: batch {"frames": uint8 [B, T, S, S, 3], "masks": bool [B, O, T, S, S], "valid": bool [B, O]}.

        Args:
          step: steps done so far, which set the share of the pixels that counts.
        """
        model: XMem = nnx.merge(self._graph, params)
        frames = (batch["frames"].astype(jnp.float32) / 255 - MEAN) / DEVIATION
        masks = batch["masks"].astype(jnp.float32)
        choices = draw_choices(
            key,
            clips=frames.shape[0],
            frames=frames.shape[1],
            num_ref_frames=self.config.num_ref_frames,
            deep_update_prob=self.config.deep_update_prob,
        )
        valid = batch["valid"].astype(jnp.float32)
        output = segment_clip(model, frames, masks[:, :, 0], valid, choices, remat=self.config.remat)
        # Visible regions do not overlap: the label of a pixel is the one object that shows there.
        numbers = jnp.arange(1, masks.shape[1] + 1)[None, :, None, None, None]
        labels = jnp.sum(masks * numbers, axis=1).astype(jnp.int32)[:, 1:]
        losses = clip_losses(output.logits, output.masks, labels, jnp.sum(valid, axis=1), step, self.config.bootstrap)
        return losses.total, {"cross_entropy": jnp.mean(losses.cross_entropy), "dice": jnp.mean(losses.dice)}

    def source(self, split: str) -> Any:
        """Videos of the split."""
        return data.source(self.config.clips, split)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A clip of a video."""
        clips = self.config.clips
        return ClipRow(
            frames=clips.frames,
            objects=clips.objects,
            size=self.config.size,
            longest_stride=clips.longest_stride,
            crop=clips.crop,
        )

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity on validation clips, from first masks, with the published memory settings."""
        del step
        state = nnx.split(parameters.assembled(self._model, params))[1]
        if self._tracker is None:
            self._tracker = XMemTracker(nnx.merge(self._graph, state), MemoryConfig(size=self.config.size))
        self._tracker.propagator.weights = state
        clips = self.source("validation")
        return region_similarity(self._tracker, [clips[index] for index in range(self.config.validation_clips)])

    def export(self, params: Params, folder: Path) -> None:
        """Writes the model; see `parts.bundle`."""
        bundle.save(folder, "xmem", {"xmem": parameters.assembled(self._model, params)}, settings={})
