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


def grid_angles(sizes: Sequence[int], features: Sequence[int], *, theta: float, first: int = 0) -> np.ndarray:
    """Angles of every cell of a grid whose axes share the head dimension, last axis fastest.

    Args:
      sizes: cells along each axis, for example (T, H, W).
      features: head dimensions given to each axis, each even.
      theta: base of the frequencies.
      first: position of the first cell of each axis.

    Returns:
      float64 [prod(sizes), sum(features) // 2].
    """
    parts = []
    for axis, (size, width) in enumerate(zip(sizes, features, strict=True)):
        angles = axis_angles(np.arange(first, first + size), width, theta=theta)
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


def rotate_halves(x: jax.Array, cos: jax.Array, sin: jax.Array, *, axes: int = 1) -> jax.Array:
    """Rotates pairs that lie half a part apart, in float32.

    The head width is cut into `axes` equal parts, one for each axis of the grid, and entry i of a part's first half
    pairs with entry i of its second half.

    Shapes: x [B, T, N, H], cos and sin [T, H // 2] or [B, T, H // 2], a part's angles side by side as in `grid_angles`
    -> [B, T, N, H] in the format of x.
    """
    parts = x.astype(jnp.float32).reshape(*x.shape[:-1], axes, 2, x.shape[-1] // (2 * axes))
    near, far = parts[..., 0, :], parts[..., 1, :]
    cos, sin = (table.reshape(-1, x.shape[1], 1, axes, table.shape[-1] // axes) for table in (cos, sin))
    rotated = jnp.stack([near * cos - far * sin, far * cos + near * sin], axis=-2)
    return rotated.reshape(x.shape).astype(x.dtype)
