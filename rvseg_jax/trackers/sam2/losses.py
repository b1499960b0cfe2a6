"""Losses of SAM 2's fine-tuning on masks of videos, `training/loss_fns.py` of the original."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class TrackerLossConfig:
    """Weights and options; the defaults are those of upstream's fine-tuning recipe.

    Attributes:
      focal, dice, iou, object_score: weights of the sums of each loss.
      focal_alpha, focal_gamma: of the masks' focal loss.
      object_alpha, object_gamma: of the object score's focal loss; alpha below 0 weighs both classes alike.
      supervise_all_iou: the predicted IoU of all alternatives is trained, not of the best one alone.
      iou_l1: absolute instead of squared error of the predicted IoU.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    object_score: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    object_alpha: float = -1.0
    object_gamma: float = 0.0
    supervise_all_iou: bool = True
    iou_l1: bool = True


def focal_losses(logits: jax.Array, masks: jax.Array, *, alpha: float, gamma: float) -> jax.Array:
    """Sigmoid focal loss (Lin et al. 2017), the mean over the last two axes.

    Shapes: logits [..., H, W], masks in 0..1 of a shape that broadcasts -> float32 [...].

    Args:
      alpha: weight of the foreground against 1 - alpha; below 0 for none.
    """
    weight = alpha if alpha >= 0 else None
    losses = optax.sigmoid_focal_loss(logits.astype(jnp.float32), masks.astype(jnp.float32), alpha=weight, gamma=gamma)
    return jnp.mean(losses, axis=(-2, -1))


def dice_losses(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) over the last two axes.

    Shapes: logits [..., H, W], masks in 0..1 of a shape that broadcasts -> float32 [...].
    """
    probability, masks = jax.nn.sigmoid(logits.astype(jnp.float32)), masks.astype(jnp.float32)
    shared = jnp.sum(probability * masks, axis=(-2, -1))
    total = jnp.sum(probability, axis=(-2, -1)) + jnp.sum(masks, axis=(-2, -1))
    return 1 - (2 * shared + 1) / (total + 1)


def true_iou(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Overlap of predicted and true masks; 0 where both are empty.

    Shapes: logits [..., H, W], masks that broadcast -> float32 [...].
    """
    predicted, true = logits > 0, masks > 0
    shared = jnp.sum(predicted & true, axis=(-2, -1)).astype(jnp.float32)
    either = jnp.sum(predicted | true, axis=(-2, -1)).astype(jnp.float32)
    return shared / jnp.maximum(either, 1)


def frame_losses(
    cfg: TrackerLossConfig,
    logits: jax.Array,
    iou: jax.Array,
    valid: jax.Array,
    object_score: jax.Array,
    masks: jax.Array,
    supervised: jax.Array,
) -> dict[str, jax.Array]:
    """Sums of the four losses over the objects of a frame, and their weighted total.

    Of several masks only the best, by focal and dice loss, is trained; only where the object is there.

    Shapes: logits [B, M, H, W], iou [B, M], valid bool [B, M], object_score [B], masks [B, H, W], supervised bool [B]
      -> float32 [] each: "focal", "dice", "iou", "object_score", "total".

    Args:
      valid: which alternatives were asked for; at least one a row.
      supervised: rows without truth, or whose mask was given, are False and count nothing.

    Source: `MultiStepMultiMasksAndIous._update_losses`.
    """
    truth = masks[:, None]
    focal = focal_losses(logits, truth, alpha=cfg.focal_alpha, gamma=cfg.focal_gamma)
    dice = dice_losses(logits, truth)
    error = iou.astype(jnp.float32) - jax.lax.stop_gradient(true_iou(logits, truth))
    quality = jnp.abs(error) if cfg.iou_l1 else jnp.square(error)
    combined = jnp.where(valid, cfg.focal * focal + cfg.dice * dice, jnp.inf)
    best = jax.nn.one_hot(jnp.argmin(combined, axis=1), iou.shape[1])
    for_iou = valid / jnp.sum(valid, axis=1, keepdims=True) if cfg.supervise_all_iou else best
    present = jnp.any(masks > 0, axis=(1, 2)).astype(jnp.float32)
    counted = supervised.astype(jnp.float32)
    score = object_score.astype(jnp.float32)
    classified = focal_losses(
        score[:, None, None], present[:, None, None], alpha=cfg.object_alpha, gamma=cfg.object_gamma
    )

    def total(losses: jax.Array, chosen: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(losses * chosen, axis=1) * present * counted)

    losses = {
        "focal": total(focal, best),
        "dice": total(dice, best),
        "iou": total(quality, for_iou),
        "object_score": jnp.sum(classified * counted),
    }
    weighted = (getattr(cfg, name) * value for name, value in losses.items())
    return {**losses, "total": sum(weighted, jnp.zeros(()))}
