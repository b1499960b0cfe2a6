"""Normalisation layers; statistics are always float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), variance without Bessel's correction."""

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        use_scale: bool = True,
        use_bias: bool = True,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        del rngs  # nothing random; kept so that all layers are built alike
        self.scale = nnx.Param(jnp.ones((features,), precision.param_dtype)) if use_scale else None
        self.bias = nnx.Param(jnp.zeros((features,), precision.param_dtype)) if use_bias else None
        self.eps = eps
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., D] -> [..., D], in the format of computation."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        if self.scale is not None:
            y = y * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return self.precision.compute(y)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, *, eps: float, precision: Precision, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones((features,), precision.param_dtype))
        self.eps = eps
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., D] -> [..., D], in the format of computation."""
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
        return self.precision.compute(self.precision.compute(y) * self.precision.compute(self.scale[...]))


class BatchNorm(nnx.Module):
    """Batch normalisation over the last axis (Ioffe and Szegedy 2015).

    It normalises by stored statistics (`eval()` in PyTorch) or by given ones. The stored ones are variables of type
    `nnx.BatchStat`, which no gradient reaches when it is taken with respect to `nnx.Param`; nothing here updates them.
    """

    def __init__(self, features: int, *, eps: float = 1e-5, precision: Precision, rngs: nnx.Rngs):
        del rngs
        dtype = precision.param_dtype
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))
        self.mean = nnx.BatchStat(jnp.zeros((features,), dtype))
        self.var = nnx.BatchStat(jnp.ones((features,), dtype))
        self.eps = eps
        self.precision = precision

    def __call__(self, x: jax.Array, statistics: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """Shapes: x [..., D] -> [..., D], in the format of computation.

        Args:
          statistics: mean and variance (without Bessel's correction) in place of the stored ones, as wide as `x` or
            broadcast to it.
        """
        mean, var = statistics or (self.mean[...], self.var[...])
        scale, bias, mean, var = (leaf.astype(jnp.float32) for leaf in (self.scale[...], self.bias[...], mean, var))
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return self.precision.compute(x.astype(jnp.float32) * factor + (bias - mean * factor))


class InstanceNorm(nnx.Module):
    """Normalisation of every channel of every image by its own statistics (Ulyanov et al. 2016), without parameters.

    The variance is without Bessel's correction.
    """

    def __init__(self, *, eps: float = 1e-5, precision: Precision):
        self.eps = eps
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H, W, C], in the format of computation."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=(1, 2), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 2), keepdims=True)
        return self.precision.compute(centred * jax.lax.rsqrt(variance + self.eps))
