"""MLLMSeg's training losses, `utils/losses.py` and the end of `MLLMSeg.forward` of upstream."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Focal = Literal["corrected", "published"]
_SMOOTH, _TINY = 1.0, 1e-8


@dataclass(frozen=True)
class MaskLossConfig:
    """Weights and the form of the focal loss.

    Attributes:
      text, focal, dice: weights of the cross entropy of words and of both losses of masks.
      form: "published" gives probabilities to a cross entropy that takes logits, which squeezes them by a second
        sigmoid; "corrected" gives it logits (Lin et al. 2017, section 3).
      alpha: weight of pixels of the target, those of the rest have 1 - alpha; negative for no weights.
      gamma: exponent on the probability of the wrong answer.
    """

    text: float = 1.0
    focal: float = 1.0
    dice: float = 1.0
    form: Focal = "corrected"
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.form not in get_args(Focal):
            raise ValueError(f"form {self.form!r} is not known: choose one of {', '.join(get_args(Focal))}")

    @classmethod
    def published(cls) -> "MaskLossConfig":
        """As upstream trained."""
        return cls(form="published")


def mask_losses(
    cfg: MaskLossConfig,
    logits: jax.Array,
    masks: jax.Array,
    drawn: jax.Array,
    phrases: jax.Array,
    sizes: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The losses "focal" and "dice" of the masks of a batch, and their soft "mask_iou".

    A phrase that names nothing costs nothing and counts in the mean, as upstream.

    Shapes: logits [B, K, S, S], masks bool [B, K, H, W], drawn and phrases bool [B, K], sizes int [B, 2] -> float32 [].

    Args:
      logits: of squares, before the sigmoid.
      masks: of images, of which the upper left (h, w) = `sizes` are theirs and the rest is padding; or, without sizes,
        of the squares.
      drawn: phrases that have a mask.
      phrases: phrases that are there.
    """
    target, shape = masks.astype(jnp.float32), (masks.shape[2], masks.shape[3])
    logits = logits.astype(jnp.float32)
    drawing = jax.nn.sigmoid(logits) if cfg.form == "published" else logits
    if sizes is None:
        inside = jnp.ones((len(masks), 1, *shape))
    else:
        inside = _inside(sizes, shape)[:, None].astype(jnp.float32)
        drawing = resized(drawing, sizes, shape)  # upstream resizes probabilities
    count = jnp.sum(phrases) + 1e-8
    terms = mask_terms(cfg, drawing, target, inside)
    return {name: jnp.sum(jnp.where(drawn, term, 0.0)) / count for name, term in terms.items()}


def mask_terms(cfg: MaskLossConfig, drawing: jax.Array, target: jax.Array, inside: jax.Array) -> dict[str, jax.Array]:
    """What `mask_losses` sums, of every mask.

    Shapes: drawing and target [B, K, H, W], inside [B, 1, H, W] -> [B, K].

    Args:
      drawing: probabilities in the published form, logits in the corrected one.
    """
    entropy = jax.nn.softplus(drawing) - target * drawing
    probability = drawing if cfg.form == "published" else jax.nn.sigmoid(drawing)
    right = probability * target + (1 - probability) * (1 - target)
    focal = entropy * (1 - right) ** cfg.gamma
    if cfg.alpha >= 0:
        focal = focal * (cfg.alpha * target + (1 - cfg.alpha) * (1 - target))
    pixels = jnp.sum(inside, axis=(2, 3))
    probability, target = probability * inside, target * inside
    shared = jnp.sum(probability * target, axis=(2, 3))
    both = jnp.sum(probability, axis=(2, 3)) + jnp.sum(target, axis=(2, 3))
    return {
        "focal": jnp.sum(focal * inside, axis=(2, 3)) / pixels,
        "dice": 1 - (2 * shared + _SMOOTH) / (both + _SMOOTH),
        "mask_iou": (shared + _TINY) / (both - shared + _TINY),
    }


def text_loss(logits: jax.Array, targets: jax.Array, labelled: jax.Array) -> jax.Array:
    """Cross entropy of the tokens that are labelled, in the mean over the batch; a state predicts the next token.

    Shapes: logits [B, T, V], targets int [B, T], labelled bool [B, T] -> float32 [].
    """
    logits = logits[:, :-1].astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, 1:, None], axis=-1)[..., 0]
    costs = jax.nn.logsumexp(logits, axis=-1) - chosen
    counted = labelled[:, 1:]
    return jnp.sum(jnp.where(counted, costs, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def resized(x: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Squares enlarged to images of different sizes, bilinear as torch has it, in the upper left of one shape.

    What is outside of an image repeats its edge.

    Shapes: x [B, K, S, S], sizes int [B, 2], shape (H, W) -> [B, K, H, W].
    """
    rows = _weights(sizes[:, 0], x.shape[2], shape[0])
    columns = _weights(sizes[:, 1], x.shape[3], shape[1])
    return jnp.einsum("bhs,bkst,bwt->bkhw", rows, x, columns, precision="highest")


def _weights(size: jax.Array, source: int, target: int) -> jax.Array:
    """Weights of the source's cells at every target cell. Shapes: size int [B] -> float32 [B, target, source]."""
    place = (jnp.arange(target) + 0.5) * (source / size[:, None].astype(jnp.float32)) - 0.5
    place = jnp.clip(place, 0, source - 1)
    return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(source)), 0)


def _inside(sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Shapes: sizes int [B, 2] -> bool [B, H, W]."""
    rows = jnp.arange(shape[0]) < sizes[:, :1]
    columns = jnp.arange(shape[1]) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
