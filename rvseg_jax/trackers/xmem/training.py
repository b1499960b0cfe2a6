"""Training XMem on clips of videos; the protocol is `training.tasks.Task`.

tracker.xmem   masks of the first frame are carried through the others, from a few frames before each
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.models.xmem.clip import draw_choices, segment_clip
from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.network import SHARDING, XMem
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.imagenet import DEVIATION, MEAN
from rvseg_jax.trackers import data
from rvseg_jax.trackers.base import Tracker
from rvseg_jax.trackers.task import TrackerTask
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


class XMemTask(TrackerTask):
    """Bootstrapped cross entropy and Dice on clips of videos."""

    Config = XMemTrainingConfig
    sharding_table: Table = SHARDING
    name = "xmem"

    def __init__(self, config: XMemTrainingConfig, *, precision: Precision) -> None:
        sizes = replace(config.model, precision=precision)
        super().__init__(config, lambda rngs: XMem(sizes, rngs=rngs), precision)

    @property
    def size(self) -> int:
        """As the recipe says."""
        return self.config.size

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

    def _tracker_of(self, state: nnx.State, last: Tracker | None) -> Tracker:
        model = nnx.merge(self._graph, state)
        tracker = last if isinstance(last, XMemTracker) else XMemTracker(model, MemoryConfig(size=self.size))
        tracker.propagator.weights = state
        return tracker

    def settings(self) -> dict[str, Any]:
        """The size that it was trained at."""
        return {"size": self.size}
