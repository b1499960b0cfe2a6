"""RAFT's training loss: a sum over the predictions of all updates, later ones weighing more."""

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError


def sequence_loss(
    predictions: jax.Array, flow: jax.Array, valid: jax.Array, *, gamma: float = 0.8, max_flow: float = 400.0
) -> jax.Array:
    """The sum over updates u of gamma**(U - 1 - u) times the mean absolute error.

    The mean is over all pixels and both directions; pixels that do not count add nothing to it, but to its number.

    Shapes: predictions float32 [U, B, H, W, 2], flow [B, H, W, 2] in pixels, valid bool [B, H, W] -> float32 [].

    Args:
      gamma: in 0..1.
      max_flow: pixels; where the true flow is this long or longer, or not a number, the pixel does not count.

    Raises:
      InputError: for shapes that do not fit, or a gamma outside of 0..1.

    Source: Teed and Deng 2020, section 3.3; `sequence_loss` in torchvision's `references/optical_flow/utils.py`.
    """
    if predictions.ndim != 5 or predictions.shape[1:] != flow.shape or valid.shape != flow.shape[:-1]:
        raise InputError(
            f"predictions {predictions.shape}, flow {flow.shape}, valid {valid.shape}: give [U, B, H, W, 2], "
            "[B, H, W, 2] and [B, H, W]"
        )
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma is {gamma}: it must be between 0 and 1")
    flow = flow.astype(jnp.float32)
    counted = (valid.astype(bool) & (jnp.linalg.norm(flow, axis=-1) < max_flow))[..., None]
    # Where it does not count, the true flow may be anything, and its gradient would be too.
    errors = jnp.abs(jnp.where(counted, predictions.astype(jnp.float32) - jnp.where(counted, flow, 0), 0))
    updates = predictions.shape[0]
    weights = gamma ** jnp.arange(updates - 1, -1, -1, dtype=jnp.float32)
    return jnp.sum(weights * errors.mean(axis=(1, 2, 3, 4)))
