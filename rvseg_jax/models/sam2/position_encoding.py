"""Positions as vectors: sines over a grid, and random Fourier features of points."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision


def sine_encoding(height: int, width: int, features: int, *, temperature: float = 10_000.0) -> jax.Array:
    """Sines and cosines of the row, then of the column, of every cell; positions run over (0, 2 pi].

    Shapes: -> float32 [H, W, D].

    Args:
      features: width D, a multiple of 4.
      temperature: ratio of the longest to the shortest wavelength.

    Raises:
      ValueError: if D is no multiple of 4.

    Source: `PositionEmbeddingSine`, sam2/modeling/position_encoding.py.
    """
    if features % 4:
        raise ValueError(f"a sine encoding of a grid needs a width that is a multiple of 4, got {features}")
    half = features // 2
    wavelengths = temperature ** (2 * (np.arange(half) // 2) / half)

    def encode(count: int) -> jax.Array:
        # The small addend is upstream's: positions end a little before 2 pi.
        positions = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
        angles = jnp.asarray(positions[:, None] / wavelengths, jnp.float32)
        return jnp.stack([jnp.sin(angles[:, 0::2]), jnp.cos(angles[:, 1::2])], axis=-1).reshape(count, half)

    rows = jnp.broadcast_to(encode(height)[:, None], (height, width, half))
    columns = jnp.broadcast_to(encode(width)[None], (height, width, half))
    return jnp.concatenate([rows, columns], axis=-1)


class RandomFourierPositions(nnx.Module):
    """Sines and cosines of points under random frequencies (Tancik et al. 2020), drawn once and stored.

    The frequencies stay float32 in every precision, and so do the angles: rounded to bfloat16 they are off by up to
    0.14 of the unit circle. They are a buffer upstream, and nothing trains them.

    Source: `PositionEmbeddingRandom`, sam2/modeling/position_encoding.py.
    """

    def __init__(self, features: int, *, precision: Precision, rngs: nnx.Rngs):
        frequencies = jax.random.normal(rngs.params(), (2, features // 2), jnp.float32)
        self.positional_encoding_gaussian_matrix = nnx.Param(frequencies)
        self.precision = precision

    def __call__(self, points: jax.Array) -> jax.Array:
        """Shapes: points [..., 2] as (x, y) in 0..1 -> float32 [..., D]."""
        centred = 2 * points.astype(jnp.float32) - 1
        frequencies = jax.lax.stop_gradient(self.positional_encoding_gaussian_matrix[...])
        angles = 2 * jnp.pi * jnp.matmul(centred, frequencies, precision="highest")
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid(self, height: int, width: int) -> jax.Array:
        """The encoding of the centres of a grid's cells. Shapes: -> float32 [H, W, D]."""
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        return self(jnp.asarray(np.stack([x, y], axis=-1), jnp.float32))
