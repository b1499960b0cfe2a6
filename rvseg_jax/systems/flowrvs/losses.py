"""Objectives of the three stages of FlowRVS."""

import jax
import jax.numpy as jnp
import optax


def velocity_errors(predicted: jax.Array, velocity: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Mean squared error over the latents of each sample; the loss is their mean (FlowRVS engine.py).

    Shapes: predicted and velocity [B, t, h, w, Z]; valid bool [B, h, w], False where a clip is padding
      -> float32 [B].
    """
    squares = jnp.square(predicted.astype(jnp.float32) - velocity.astype(jnp.float32))
    if valid is None:
        return jnp.mean(squares, axis=(1, 2, 3, 4))
    weights = valid[:, None, :, :, None].astype(jnp.float32)
    counted = jnp.sum(weights, axis=(1, 2, 3, 4)) * squares.shape[1] * squares.shape[-1]
    return jnp.sum(squares * weights, axis=(1, 2, 3, 4)) / jnp.maximum(counted, 1)


def focal_loss(logits: jax.Array, masks: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Mean sigmoid focal loss over pixels (Lin et al. 2017); alpha weighs the foreground.

    Shapes: logits and masks in 0..1 of one shape -> float32 [].
    """
    return jnp.mean(optax.sigmoid_focal_loss(logits.astype(jnp.float32), masks, alpha=alpha, gamma=gamma))


def dice_loss(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) over the pixels of each clip, averaged over clips.

    Shapes: logits and masks in 0..1 [B, ...] -> float32 [].
    """
    pixels = tuple(range(1, logits.ndim))
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    shared = jnp.sum(probability * masks, axis=pixels)
    total = jnp.sum(probability, axis=pixels) + jnp.sum(masks, axis=pixels)
    return jnp.mean(1 - (2 * shared + 1) / (total + 1))
