"""Enlarging a feature map by sampling it at learned points (Liu et al. 2023, "Learning to Upsample by Learning to
Sample", arXiv 2308.15085), style "lp" without the dynamic scope.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.linear import Linear
from rvseg_jax.ops.grid_sample import grid_sample

# Static scope factor of the paper's section 3.2: offsets of neighbours overlap no more than a little.
_SCOPE = 0.25


class DySample(nnx.Module):
    """Every position becomes `scale` x `scale`, each sampled near it; groups of channels have offsets of their own."""

    def __init__(self, features: int, *, scale: int, groups: int, precision: Precision, rngs: nnx.Rngs):
        self.offset = Linear(features, 2 * groups * scale**2, precision=precision, rngs=rngs)
        self.scale, self.groups = scale, groups
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, scale H, scale W, C].

        Coordinates are in the format of computation, as in the original: in bfloat16 they are coarse.
        """
        height, width = x.shape[1:3]
        x = self.precision.compute(x)
        start = jnp.asarray(initial_offsets(self.scale, self.groups), x.dtype)
        offsets = self.offset(x) * jnp.asarray(_SCOPE, x.dtype) + start
        # Channels: x or y, then group, then the row and the column inside the enlarged position.
        offsets = rearrange(offsets, "b h w (a g r c) -> b g h r w c a", a=2, g=self.groups, r=self.scale)
        rows = jnp.arange(height, dtype=x.dtype)[:, None, None, None] + jnp.asarray(0.5, x.dtype)
        columns = jnp.arange(width, dtype=x.dtype)[:, None] + jnp.asarray(0.5, x.dtype)
        places = jnp.stack(jnp.broadcast_arrays(columns, rows), axis=-1)
        sizes = jnp.asarray([width, height], x.dtype)
        grid = 2 * (offsets + places) / sizes - 1
        grid = rearrange(grid, "b g h r w c a -> (b g) (h r) (w c) a")
        images = rearrange(x, "b h w (g c) -> (b g) h w c", g=self.groups)
        sampled = grid_sample(images, grid, padding_mode="border", align_corners=False)
        return rearrange(sampled, "(b g) h w c -> b h w (g c)", g=self.groups)


def initial_offsets(scale: int, groups: int) -> np.ndarray:
    """Offsets in pixels at which sampling is ordinary bilinear enlargement: upstream's buffer `init_pos`.

    Shapes: -> float32 [2 * groups * scale^2], in the order of the offsets' channels.
    """
    inside = ((np.arange(scale) - (scale - 1) / 2) / scale).astype(np.float32)
    rows, columns = np.meshgrid(inside, inside, indexing="ij")
    axes = np.stack([columns, rows])[:, None]
    return np.broadcast_to(axes, (2, groups, scale, scale)).reshape(-1)
