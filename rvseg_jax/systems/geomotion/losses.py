"""GeoMotion's training losses, `CombinedLoss` of upstream's network file."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

_SMOOTH = 1e-6


@dataclass(frozen=True)
class MotionLossConfig:
    """Weights and options; the defaults are upstream's code, `paper` what its paper says.

    Attributes:
      bce, dice, focal: weights.
      focal_alpha, focal_gamma: of the focal loss.
    """

    bce: float = 1.0
    dice: float = 1.0
    focal: float = 0.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    @classmethod
    def paper(cls) -> "MotionLossConfig":
        """Focal and Dice loss at 0.5 each."""
        return cls(bce=0.0, dice=0.5, focal=0.5)


def motion_losses(
    cfg: MotionLossConfig, logits: jax.Array, masks: jax.Array, valid: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The losses of a batch: "bce", "dice", "focal", and their weighted "total".

    Upstream takes probabilities and clamps their logarithms at -100, which this does not need. Its Dice loss is one
    ratio over the whole batch, so that a clip in which nothing moves costs its share of false alarms only; alone in a
    batch it costs about 1 for any alarm.

    Shapes: logits [B, T, H, W], masks in 0..1 and valid bool of the same shape -> float32 [] each.

    Args:
      valid: pixels that count; others count as right answers of "still".
    """
    logits, masks = logits.astype(jnp.float32), masks.astype(jnp.float32)
    counted = jnp.ones_like(masks) if valid is None else valid.astype(jnp.float32)
    entropy = (jax.nn.softplus(logits) - masks * logits) * counted
    probability, masks = jax.nn.sigmoid(logits) * counted, masks * counted
    shared = jnp.sum(probability * masks)
    losses = {
        "bce": jnp.mean(entropy),
        "dice": 1 - (2 * shared + _SMOOTH) / (jnp.sum(probability) + jnp.sum(masks) + _SMOOTH),
        # -expm1(-x) is 1 - exp(-x), the probability of the wrong answer.
        "focal": jnp.mean(cfg.focal_alpha * (-jnp.expm1(-entropy)) ** cfg.focal_gamma * entropy),
    }
    return losses | {"total": cfg.bce * losses["bce"] + cfg.dice * losses["dice"] + cfg.focal * losses["focal"]}
