"""Exponential moving average of parameters, with the warm-up that diffusers' `EMAModel` uses."""

import jax
import jax.numpy as jnp

from rvseg_jax.training.tasks import Params


def init(params: Params) -> Params:
    """Float32 copy of `params`, the average before the first update."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def decay(updates: jax.Array, max_decay: float) -> jax.Array:
    """Weight of the old average in the update that follows `updates` earlier ones.

    It is min(max_decay, (1 + s) / (10 + s)) for s earlier updates, and 0 for the first, which therefore
    copies the parameters. With `max_decay` 0.9999 the cap is reached after 89,990 updates.

    Shapes:
      updates: [] integer; returns [] float32 in [0, max_decay].

    Source: `EMAModel.get_decay` of diffusers, whose `optimization_step` counts from 1.
    """
    s = updates.astype(jnp.float32)
    return jnp.where(updates <= 0, 0.0, jnp.minimum((1 + s) / (10 + s), max_decay))


def update(average: Params, params: Params, updates: jax.Array, max_decay: float) -> Params:
    """The average after one more update; `params` may be of any float format, the average stays float32.

    Shapes:
      updates: [] integer, number of updates before this one.
    """
    weight = 1 - decay(updates, max_decay)
    return jax.tree.map(lambda old, new: old - weight * (old - new.astype(jnp.float32)), average, params)
