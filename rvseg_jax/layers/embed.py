"""Token embeddings and sinusoidal embeddings of scalars."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision


class Embed(nnx.Module):
    """Table of `num_embeddings` vectors."""

    def __init__(self, num_embeddings: int, features: int, *, precision: Precision, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(stddev=1.0)
        self.embedding = nnx.Param(init(rngs.params(), (num_embeddings, features), precision.param_dtype))
        self.precision = precision

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Shapes: ids int [...] -> [..., D]; ids must lie in 0..num_embeddings-1."""
        return self.precision.compute(jnp.take(self.embedding[...], ids, axis=0))

    def attend(self, x: jax.Array) -> jax.Array:
        """Products with all vectors of the table, for a head that is tied to it.

        Shapes: x [..., D] -> float32 [..., V].
        """
        compute, table = self.precision.compute, self.embedding[...]
        return jnp.einsum(
            "...d,vd->...v",
            compute(x),
            compute(table),
            precision=self.precision.matmul,
            preferred_element_type=jnp.float32,
        )


def sinusoidal(values: jax.Array, features: int, *, max_period: float = 10_000.0) -> jax.Array:
    """Cosines, then sines, of `values` at geometrically spaced frequencies max_period^(-i / (features/2)).

    Cosines first is what diffusers calls `flip_sin_to_cos` with no frequency shift.

    Shapes: values [B] -> float32 [B, features].

    Raises:
      ValueError: if `features` is odd.
    """
    if features % 2:
        raise ValueError(f"a sinusoidal embedding needs an even width, got {features}")
    half = features // 2
    frequencies = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
