"""Training XMem on clips of videos; the protocol is `training.tasks.Task`.

tracker.xmem   masks of the first frame are carried through the others, from a few frames before each
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.input_pipeline.datasets.davis import Davis, DavisClips
from rvseg_jax.input_pipeline.mixture import Mixture
from rvseg_jax.models.xmem.clip import draw_choices, segment_clip
from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.network import SHARDING, XMem, with_other_masks
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts import parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.imagenet import DEVIATION, MEAN
from rvseg_jax.trackers import data
from rvseg_jax.trackers.base import Tracker
from rvseg_jax.trackers.task import TrackerTask
from rvseg_jax.trackers.xmem import XMemTracker
from rvseg_jax.trackers.xmem.losses import BootstrapSchedule, clip_losses
from rvseg_jax.trackers.xmem.rows import JumpRow, SparseClips, StagedRow

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class SparseConfig:
    """Videos of which only some frames are there, such as YouTube-VOS's, beside those of `clips`.

    Attributes:
      root: a dataset in DAVIS's layout; "" for none.
      split, year, resolution: see `datasets.davis.Davis`; YouTube-VOS's frames lie in no folder of their size.
      every: frames of a video from one that is there to the next.
      repeats: how often each video of `clips`, and each of these, comes in an epoch.
    """

    root: str = ""
    split: str = "train"
    year: Literal["", "2016", "2017"] = ""
    resolution: str = "."
    every: int = 5
    repeats: tuple[int, int] = (5, 1)

    def __post_init__(self) -> None:
        if min(self.every, *self.repeats) < 1:
            raise ValueError(f"every {self.every} and repeats {self.repeats}: each must be at least 1")


@dataclass(frozen=True)
class XMemTrainingConfig:
    """What is trained on what.

    Attributes:
      model: sizes.
      clips: training clips.
      sparse: a second dataset, of videos with fewer frames.
      strides: (samples taken before, longest stride from then on); before the first that of `clips` holds. With any,
        the frames of a clip are chosen as upstream does, each near another one; otherwise at one stride.
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
    sparse: SparseConfig = SparseConfig()
    strides: tuple[tuple[int, int], ...] = ()
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
        starts = [start for start, _ in self.strides]
        if starts != sorted(set(starts)) or any(stride < 1 for _, stride in self.strides):
            raise ValueError(f"strides {self.strides} must be pairs (samples, stride) with ascending samples")


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

    def source(self, split: str) -> Any:
        """Videos of the split; for training of both datasets, the shares as in upstream's joined list of videos."""
        first = super().source(split)
        sparse = self.config.sparse
        if split != "train" or not sparse.root:
            return first
        davis = Davis(sparse.root, sparse.split, year=sparse.year, resolution=sparse.resolution)
        second = SparseClips(DavisClips(davis), sparse.every)
        weights = [repeats * len(one) for repeats, one in zip(sparse.repeats, (first, second), strict=True)]
        return Mixture([first, second], weights)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A clip of a video, whose stride may depend on how far training is."""
        if split != "train" or not self.config.strides:
            return super().transform(split)
        clips = self.config.clips
        row = JumpRow(clips.frames, clips.objects, self.size, clips.longest_stride, clips.crop)
        return StagedRow(row, self.config.strides)

    def restore_pretrained(self, target: Params) -> Params:
        """All parameters; a network of stage 0, which sees no other object's mask, is taught to look at them."""
        if not self.config.pretrained:
            return {}
        given = parameters.read(self.config.pretrained, self.name, self._precision, target)
        first = given["value_encoder"]["conv1"]
        if first["kernel"].shape[2] < self.config.model.mask_channels:
            first["kernel"] = with_other_masks(jnp.asarray(first["kernel"]), jax.random.key(0))
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

    def _tracker_of(self, state: nnx.State, last: Tracker | None) -> Tracker:
        model = nnx.merge(self._graph, state)
        tracker = last if isinstance(last, XMemTracker) else XMemTracker(model, MemoryConfig(size=self.size))
        tracker.propagator.weights = state
        return tracker

    def settings(self) -> dict[str, Any]:
        """The size that it was trained at."""
        return {"size": self.size}
