"""The flow from video latent to mask latent: schedule, Euler steps, training pairs.

Upstream's code counts time from the mask (t = 0) to the video (t = 1000); the paper counts the other way.
The velocity is x_video - x_mask, so that one Euler step from t = 1000 to 0 is z = x_video - v.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

TIME_STEPS = 1000  # the DiT's time runs over 0..1000
ScheduleKind = Literal["mevis", "demo"]


@dataclass(frozen=True)
class Schedule:
    """Times of an Euler solver.

    Attributes:
      timesteps: [K], what the DiT is told, descending from 1000.
      sigmas: [K + 1], timesteps / 1000 with a final 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


def schedule(num_steps: int, kind: ScheduleKind = "mevis") -> Schedule:
    """Times of `num_steps` Euler steps.

    Args:
      num_steps: K, at least 1; the released weights are made for 1.
      kind: "mevis" is upstream's benchmark script, a grid shifted by 3 and rounded to whole steps; "demo" is
        its demo script, an even grid from 1000 to 1. They agree for one step.

    Raises:
      ValueError: for fewer than one step, or more than there are distinct times.
    """
    if not 1 <= num_steps <= TIME_STEPS:
        raise ValueError(f"num_steps must lie in 1..{TIME_STEPS}, got {num_steps}")
    if kind == "mevis":
        grid = np.linspace(1.0, 0.001, num_steps + 1, dtype=np.float32)[:-1]
        timesteps = np.round(np.float32(3) * grid / (1 + np.float32(2) * grid) * np.float32(TIME_STEPS))
    elif kind == "demo":
        timesteps = np.linspace(TIME_STEPS, 1, num_steps, dtype=np.float32)
    else:
        raise ValueError(f"unknown schedule {kind!r}: choose 'mevis' or 'demo'")
    sigmas = np.append(timesteps / np.float32(TIME_STEPS), np.float32(0))
    return Schedule(tuple(map(float, timesteps)), tuple(map(float, sigmas)))


def euler_step(latents: jax.Array, velocity: jax.Array, sigma: float, next_sigma: float) -> jax.Array:
    """One Euler step from `sigma` to `next_sigma`.

    The step is rounded to the velocity's format, the sum is float32 and the result has the velocity's format,
    as in diffusers' FlowMatchEulerDiscreteScheduler; in float32 this is plain arithmetic.
    """
    change = velocity * jnp.asarray(np.float32(next_sigma) - np.float32(sigma), velocity.dtype)
    return (latents.astype(jnp.float32) + change.astype(jnp.float32)).astype(velocity.dtype)


def solve(
    velocity: Callable[[jax.Array, float], jax.Array], video_latents: jax.Array, times: Schedule
) -> tuple[jax.Array, list[jax.Array]]:
    """Euler solution from the video latent to the mask latent.

    Args:
      velocity: (latents, timestep) -> velocity of the same shape.
      video_latents: normalised video latents, where the flow starts; any shape.
      times: from `schedule`.

    Returns:
      The mask latents, and the velocity of every step.
    """
    latents, velocities = video_latents, []
    for timestep, sigma, next_sigma in zip(times.timesteps, times.sigmas[:-1], times.sigmas[1:], strict=True):
        velocities.append(velocity(latents, timestep))
        latents = euler_step(latents, velocities[-1], sigma, next_sigma)
    return latents, velocities


def training_pair(
    video_latents: jax.Array, mask_latents: jax.Array, timesteps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Point on the straight path between the two latents, and the velocity there.

    Shapes: latents [B, T, H, W, Z], timesteps [B] in 1..1000 -> state and velocity, float32 [B, T, H, W, Z].
    """
    video, mask = video_latents.astype(jnp.float32), mask_latents.astype(jnp.float32)
    sigma = jnp.maximum(timesteps.astype(jnp.float32) / TIME_STEPS, 1e-5)
    sigma = sigma.reshape(-1, *(1,) * (video.ndim - 1))
    return sigma * video + (1 - sigma) * mask, video - mask


def boundary_biased_timesteps(key: jax.Array, batch: int, *, probability: float = 0.5) -> jax.Array:
    """Training times with the start of the path over-represented (boundary-biased sampling, BBS).

    For one sample the time is 1000 with `probability`, else uniform over 1..1000. For a batch exactly
    floor(batch * probability) samples sit at 1000 and the rest are uniform, in random order, as upstream.

    Shapes: -> float32 [batch].

    Raises:
      ValueError: if `probability` is outside 0..1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of the boundary must lie in 0..1, got {probability}")
    uniform_key, boundary_key = jax.random.split(key)
    uniform = jnp.floor(jax.random.uniform(uniform_key, (batch,)) * TIME_STEPS).clip(1, TIME_STEPS)
    if batch == 1:
        at_boundary = jax.random.bernoulli(boundary_key, probability, (1,))
    else:
        rank = jax.random.permutation(boundary_key, batch)
        at_boundary = rank < int(batch * probability)
    return jnp.where(at_boundary, float(TIME_STEPS), uniform)
