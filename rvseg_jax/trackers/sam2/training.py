"""Fine-tuning SAM 2 on masks of videos, or training a small one from nothing; the protocol is `training.tasks.Task`.

tracker.sam2   objects are prompted in the first frame of a clip and followed through the others
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers import stack
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import SHARDING, Sam2
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.imagenet import DEVIATION, MEAN
from rvseg_jax.trackers import data
from rvseg_jax.trackers.base import Tracker
from rvseg_jax.trackers.sam2 import Sam2Tracker
from rvseg_jax.trackers.sam2.clips import clip_losses, simulated_prompts, taught, track_clip
from rvseg_jax.trackers.sam2.interaction import InteractionConfig, draw_plan, track_interactively
from rvseg_jax.trackers.sam2.losses import TrackerLossConfig
from rvseg_jax.trackers.task import TrackerTask

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Sam2TrainingConfig:
    """What is trained on what.

    Attributes:
      model: sizes and options.
      clips: training clips.
      prompts: how often an object is given by its mask, by a click, and by a box.
      interaction: prompts besides one on the first frame, and corrections.
      losses: weights of the losses.
      pretrained: folder of an earlier export or of a converted checkpoint; "" starts from nothing.
      remat: what the backward pass computes again, see `track_clip`.
      validation_clips: clips of moving_shapes that `evaluate` scores.
    """

    model: Sam2Config = Sam2Config()
    clips: data.ClipsConfig = data.ClipsConfig()
    prompts: tuple[float, float, float] = (0.5, 0.25, 0.25)
    interaction: InteractionConfig = InteractionConfig()
    losses: TrackerLossConfig = field(default_factory=TrackerLossConfig)
    pretrained: str = ""
    remat: stack.Remat = "full"
    validation_clips: int = 16

    def __post_init__(self) -> None:
        if min(self.prompts) < 0 or abs(sum(self.prompts) - 1) > 1e-6:
            raise ValueError(f"prompts {self.prompts} must be shares of mask, click and box that add to 1")


class Sam2Task(TrackerTask):
    """The losses of `trackers.sam2.clips` on clips of videos."""

    Config = Sam2TrainingConfig
    sharding_table: Table = SHARDING
    name = "sam2"

    def __init__(self, config: Sam2TrainingConfig, *, precision: Precision) -> None:
        self._sizes = replace(config.model, precision=precision)
        super().__init__(config, lambda rngs: Sam2(self._sizes, rngs=rngs), precision)

    @property
    def size(self) -> int:
        """That of the model's images."""
        return self._sizes.image_size

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of a batch of clips.

        Shapes: batch {"frames": uint8 [V, T, S, S, 3], "masks": bool [V, O, T, S, S], "valid": bool [V, O]}.
        """
        model: Sam2 = nnx.merge(self._graph, params)
        pixels = batch["frames"].astype(jnp.float32) / 255
        images = jnp.moveaxis((pixels - MEAN) / DEVIATION, 1, 0)
        videos, objects, frames = batch["masks"].shape[:3]
        masks = jnp.moveaxis(batch["masks"].reshape(videos * objects, frames, *batch["masks"].shape[3:]), 1, 0)
        counted = jnp.broadcast_to(batch["valid"].reshape(-1), (frames, videos * objects))
        config = self.config
        if config.interaction == InteractionConfig() and not config.model.memory_attention.dropout:
            prompts = self._prompts(key, masks[0])
            output = track_clip(model, images, prompts, remat=config.remat)
            counted = taught(prompts, counted)
        else:
            own, *keys = jax.random.split(key, 1 + config.interaction.num_init_cond_frames)
            kinds = self._kinds(keys[0], videos * objects)

            def prompts_of(step: int, shown: jax.Array) -> TrackPrompts:
                return self._prompts(keys[step], shown, masked=kinds == 0)

            plan = draw_plan(own, config.interaction, masks, videos, prompts_of)
            output = track_interactively(model, images, masks, plan, config.interaction, remat=config.remat)
            masks, counted = plan.in_order(masks), counted & ~(plan.initial & plan.prompts.has_mask[0])
        losses = clip_losses(config.losses, output, masks, counted)
        return losses.pop("total"), losses

    def _kinds(self, key: jax.Array, rows: int) -> jax.Array:
        """0 for a mask, 1 for a click, 2 for a box, by chance. Shapes: -> int [B]."""
        return jax.random.choice(jax.random.split(key, 4)[0], 3, (rows,), p=jnp.asarray(self.config.prompts))

    def _prompts(self, key: jax.Array, masks: jax.Array, *, masked: jax.Array | None = None) -> TrackPrompts:
        """A mask, a click or a box for each row, by chance.

        Shapes: masks bool [B, S, S], masked bool [B].

        Args:
          masked: rows that get a mask, if that is decided; the others get a click or a box.
        """
        _, *keys = jax.random.split(key, 4)
        low = self._sizes.low_res_size
        kinds = [
            simulated_prompts(one, masks, kind, low_res_size=low)  # type: ignore[arg-type]
            for one, kind in zip(keys, ("mask", "click", "box"), strict=True)
        ]
        drawn = self._kinds(key, masks.shape[0])
        if masked is not None:
            _, click, box = self.config.prompts
            boxed = jax.random.bernoulli(jax.random.fold_in(key, 0), box / max(click + box, 1e-9), masked.shape)
            drawn = jnp.where(masked, 0, 1 + boxed)

        def chosen(*leaves: jax.Array) -> jax.Array:
            index = drawn.reshape(1, -1, *(1,) * (leaves[0].ndim - 1))
            return jnp.take_along_axis(jnp.stack(leaves), index, axis=0)[0]

        return jax.tree.map(chosen, *kinds)

    def _tracker_of(self, state: nnx.State, last: Tracker | None) -> Tracker:
        tracker = last if isinstance(last, Sam2Tracker) else Sam2Tracker(nnx.merge(self._graph, state))
        tracker.programs.parameters = state
        return tracker
