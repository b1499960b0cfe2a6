"""The feature pyramid on top of the trunk, and both together: the image encoder.

Source: sam2/modeling/backbones/image_encoder.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.hiera import Hiera
from rvseg_jax.ops.resize import resize


class FpnNeck(nnx.Module):
    """All stages brought to one width; a coarser level is added into some of the finer ones (Lin et al. 2017).

    `convs` (1x1 convolutions) go from the coarsest stage to the finest, as upstream.
    """

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        widths = reversed(cfg.hiera.widths)
        self.convs = nnx.List([Linear(width, cfg.d_model, precision=cfg.precision, rngs=rngs) for width in widths])
        self.top_down_levels = cfg.fpn_top_down_levels
        self.mode = cfg.fpn_interp_model
        self.precision = cfg.precision

    def __call__(self, stages: list[jax.Array]) -> list[jax.Array]:
        """Shapes: one [B, h, w, C] for each stage -> one [B, h, w, D] for each stage; finest first."""
        last = len(stages) - 1
        levels: list[jax.Array] = []
        for level in range(last, -1, -1):
            x = self.convs[last - level](stages[level])
            if levels and level in self.top_down_levels:
                enlarged = resize(levels[-1].astype(jnp.float32), mode=self.mode, scale_factor=2.0)
                x = self.precision.compute(x.astype(jnp.float32) + enlarged)
            levels.append(x)
        return levels[::-1]


class ImageEncoder(nnx.Module):
    """Trunk and neck."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        self.trunk = Hiera(cfg.hiera, precision=cfg.precision, rngs=rngs)
        self.neck = FpnNeck(cfg, rngs=rngs)
        self.levels = len(cfg.hiera.stages) - cfg.scalp

    def __call__(self, images: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """The pyramid without its `scalp` coarsest levels, and the stages of the trunk that it is made of.

        Shapes: images [B, S, S, 3] -> [B, h, w, D] for each level, [B, h, w, C] for each stage; finest first.
        """
        stages = self.trunk(images)
        return self.neck(stages)[: self.levels], stages
