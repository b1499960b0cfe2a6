"""InternViT, the vision transformer of InternVL (Chen et al. 2024, arXiv 2412.05271), without a final normalisation.

Upstream: `internvl/model/internvl_chat/modeling_intern_vit.py` of OpenGVLab/InternVL.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.layers import stack, vit_block
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.vit_block import ViTBlock, apply_block
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import Table, constrain, prefixed

# What these must be in a `vision_config`, if they are there: other values make another network.
_FIXED = {
    "qkv_bias": True,
    "attention_bias": True,
    "qk_normalization": False,
    "use_qk_norm": False,
    "norm_type": "layer_norm",
    "hidden_act": "gelu",
    "num_channels": 3,
}
_LAYER_SCALE = 0.1


@dataclass(frozen=True)
class InternViTConfig:
    """Sizes under upstream's names; the defaults are InternViT-300M-448px, 304,012,288 parameters.

    Attributes:
      image_size: side in pixels of the images whose patches the table of positions counts.
      patch_size: side of a patch in pixels.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    precision: Precision = PARITY

    @classmethod
    def internvit_300m(cls, precision: Precision = PARITY) -> "InternViTConfig":
        """The encoder of InternVL2 and 2.5 up to 8B."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "InternViTConfig":
        """An encoder for tests: 4 x 4 patches."""
        return cls(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=56,
            precision=precision,
        )

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "InternViTConfig":
        """The config of a `vision_config`, upstream's or transformers'.

        Raises:
          ValueError: for a network that is not built here.
        """
        for name, wanted in _FIXED.items():
            if values.get(name, wanted) != wanted:
                raise ValueError(f"vision_config.{name} is {values[name]!r}: only {wanted!r} is here")
        known = {entry.name for entry in fields(cls)} - {"precision"}
        sizes = {name: _side(values[name], name) for name in known & set(values)}
        return cls(**sizes, precision=precision)

    @property
    def grid(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch_size


def _side(value: Any, name: str) -> Any:
    """The side of a square that transformers writes as [H, W]."""
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise ValueError(f"vision_config.{name} is {value}: only squares are here")
        return value[0]
    return value


class InternViT(nnx.Module):
    """Encodes square images."""

    def __init__(self, cfg: InternViTConfig, *, rngs: nnx.Rngs):
        dtype, width, patch = cfg.precision.param_dtype, cfg.hidden_size, (cfg.patch_size, cfg.patch_size)
        normal = jax.nn.initializers.normal(0.02)
        self.cfg = cfg
        self.patch_embed = Conv(3, width, patch, strides=patch, precision=cfg.precision, rngs=rngs)
        self.cls_token = nnx.Param(normal(rngs.params(), (width,), dtype))
        # Of the class token, then of the patches.
        self.pos_embed = nnx.Param(normal(rngs.params(), (1 + cfg.grid**2, width), dtype))
        self.blocks = stack.stacked(lambda keys: _block(cfg, keys), cfg.num_hidden_layers, rngs=rngs)

    def __call__(self, images: jax.Array, *, mode: stack.Mode = "scan", remat: stack.Remat = "none") -> jax.Array:
        """What the last block gives, the class token first.

        Shapes: images [B, S, S, 3], normalised by ImageNet's statistics -> [B, 1 + (S / patch)^2, D], rows first.

        Args:
          mode, remat: how the blocks run, see `layers.stack.run`; "host_loop" keeps one layer's temporaries.

        Raises:
          ValueError: if an image is no square of whole patches.
        """
        patch = self.cfg.patch_size
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[1] % patch or images.shape[3] != 3:
            raise ValueError(f"images {tuple(images.shape)} must be [B, S, S, 3] with a side that {patch} divides")
        x = constrain(self._tokens(images), "batch", "seq", "embed")
        return stack.run(self.blocks, x, apply_block, mode=mode, remat=remat)[0]

    def _tokens(self, images: jax.Array) -> jax.Array:
        compute = self.cfg.precision.compute
        patches = self.patch_embed(images)
        patches = rearrange(patches + compute(self._positions(patches.shape[1])), "b h w d -> b (h w) d")
        cls = compute(self.cls_token[...]) + compute(self.pos_embed[0])
        return jnp.concatenate([jnp.broadcast_to(cls, (len(patches), 1, len(cls))), patches], axis=1)

    def _positions(self, side: int) -> jax.Array:
        """The table of positions, resized in float32 to another grid. Shapes: -> [side, side, D]."""
        grid = self.cfg.grid
        table = self.pos_embed[1:].reshape(grid, grid, -1)
        return table if side == grid else resize(table.astype(jnp.float32), (side, side), mode="bicubic")


def _block(cfg: InternViTConfig, rngs: nnx.Rngs) -> ViTBlock:
    return ViTBlock(
        cfg.hidden_size,
        cfg.num_attention_heads,
        mlp_ratio=cfg.intermediate_size / cfg.hidden_size,
        eps=cfg.layer_norm_eps,
        layer_scale=_LAYER_SCALE,
        precision=cfg.precision,
        rngs=rngs,
    )


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    *prefixed(vit_block.SHARDING, "blocks"),
    (r"^patch_embed/kernel$", (None, None, "conv_in", "conv_out")),
    (r"^(patch_embed/bias|cls_token|pos_embed)$", ()),
)
