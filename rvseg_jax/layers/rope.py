"""Rotary position embeddings (Su et al. 2021)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def axis_angles(positions: np.ndarray, features: int, *, theta: float) -> np.ndarray:
    """Angles positions * theta^(-2i / features), computed in float64.

    Shapes: positions [P] -> float64 [P, features // 2].
    """
    frequencies = theta ** (-np.arange(0, features, 2, dtype=np.float64) / features)
    return np.asarray(positions, np.float64)[:, None] * frequencies


def grid_angles(sizes: Sequence[int], features: Sequence[int], *, theta: float) -> np.ndarray:
    """Angles of every cell of a grid whose axes share the head dimension, last axis fastest.

    Args:
      sizes: cells along each axis, for example (T, H, W).
      features: head dimensions given to each axis, each even.
      theta: base of the frequencies.

    Returns:
      float64 [prod(sizes), sum(features) // 2].
    """
    parts = []
    for axis, (size, width) in enumerate(zip(sizes, features, strict=True)):
        angles = axis_angles(np.arange(size), width, theta=theta)
        shape = [1] * len(sizes) + [width // 2]
        shape[axis] = size
        parts.append(np.broadcast_to(angles.reshape(shape), (*sizes, width // 2)))
    return np.concatenate(parts, axis=-1).reshape(-1, sum(features) // 2)


def rotate_interleaved(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x[2i], x[2i+1]) in float32.

    Shapes: x [B, T, N, H], cos and sin [T, H // 2] -> [B, T, N, H] in the format of x.
    """
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
