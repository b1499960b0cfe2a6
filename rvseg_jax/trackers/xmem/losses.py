"""XMem's training losses, as in upstream's `model/losses.py`: bootstrapped cross entropy and soft Dice."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError


@dataclass(frozen=True)
class BootstrapSchedule:
    """Which share of the pixels counts in the cross entropy, those with the largest losses.

    Attributes:
      start_warm: iteration up to which all pixels count.
      end_warm: iteration from which on `top_p` of them do; in between the share falls linearly.
    """

    start_warm: int = 20_000
    end_warm: int = 70_000
    top_p: float = 0.15

    def __post_init__(self) -> None:
        if not (0 <= self.start_warm <= self.end_warm and 0 < self.top_p <= 1):
            raise InputError(
                f"start_warm {self.start_warm}, end_warm {self.end_warm}, top_p {self.top_p}: give "
                "0 <= start_warm <= end_warm and 0 < top_p <= 1"
            )

    def share(self, iteration: jax.Array | int) -> jax.Array:
        """The share of pixels at an iteration, float32 [] in 0..1."""
        left = (self.end_warm - iteration) / max(self.end_warm - self.start_warm, 1)
        ramp = self.top_p + (1 - self.top_p) * jnp.clip(left, 0, 1)
        return jnp.where(iteration < self.start_warm, 1.0, ramp)


class ClipLosses(NamedTuple):
    """Losses of a batch of clips.

    Attributes:
      total: float32 [], sum over the frames of cross entropy and Dice.
      cross_entropy, dice: float32 [T - 1], means over the batch.
      share: float32 [], the share of pixels that counted.
    """

    total: jax.Array
    cross_entropy: jax.Array
    dice: jax.Array
    share: jax.Array


def clip_losses(
    logits: jax.Array,
    masks: jax.Array,
    labels: jax.Array,
    num_objects: jax.Array,
    iteration: jax.Array | int,
    schedule: BootstrapSchedule | None = None,
) -> ClipLosses:
    """The losses of a batch of clips, whose first frames are given and not scored.

    Shapes: logits float32 [B, T - 1, O + 1, H, W], background first; masks float32 [B, T - 1, O, H, W] in 0..1; labels
    int [B, T - 1, H, W], 0 for the background and 1.. for objects; num_objects int [B], objects that a clip has.

    Source: `LossComputer.compute`.
    """
    schedule = BootstrapSchedule() if schedule is None else schedule
    share = schedule.share(iteration)
    classes = jnp.arange(logits.shape[2])[:, None, None]

    def cross_entropy(logits: jax.Array, labels: jax.Array, objects: jax.Array) -> jax.Array:
        """Of one frame: only the classes of its own clip compete."""
        competing = jnp.where(classes <= objects, logits, -jnp.inf)
        chosen = jnp.take_along_axis(competing, labels[None], axis=0)[0]
        return hardest_mean(jax.nn.logsumexp(competing, axis=0) - chosen, share)

    of_frames = jax.vmap(jax.vmap(cross_entropy, (0, 0, None)))(logits, labels, num_objects)
    found = of_frames.mean(0)
    dice = dice_loss(masks, labels).mean((0, 2))
    return ClipLosses(jnp.sum(found + dice), found, dice, share)


def hardest_mean(losses: jax.Array, share: jax.Array) -> jax.Array:
    """Mean of the largest losses, floor(count * share) of them and at least one. Shapes: losses [...] -> []."""
    count = jnp.maximum(jnp.floor(losses.size * share), 1)
    ranked = jnp.sort(losses.reshape(-1), descending=True)
    return jnp.sum(jnp.where(jnp.arange(losses.size) < count, ranked, 0)) / count


def dice_loss(masks: jax.Array, labels: jax.Array) -> jax.Array:
    """Soft Dice losses, smoothed by 1 so that an empty mask of an absent object costs nothing.

    Shapes: masks float32 [..., O, H, W] in 0..1, labels int [..., H, W] -> [..., O].
    """
    objects = jnp.arange(1, masks.shape[-3] + 1)[:, None, None]
    truth = (labels[..., None, :, :] == objects).astype(masks.dtype)
    overlap = 2 * (masks * truth).sum((-2, -1))
    return 1 - (overlap + 1) / (masks.sum((-2, -1)) + truth.sum((-2, -1)) + 1)
