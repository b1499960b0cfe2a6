"""The DINOv2 vision transformer with register tokens, as in upstream's `dinov2/models/vision_transformer.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.layers import stack, vit_block
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.layers.vit_block import ViTBlock, apply_block, images_apart
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import Table, constrain, prefixed

# What these must be in a `config.json` of transformers, if they are there: other values make another network.
_FIXED = {"hidden_act": "gelu", "qkv_bias": True, "use_swiglu_ffn": False, "num_channels": 3}


@dataclass(frozen=True)
class Dinov2Config:
    """Sizes of a DINOv2 encoder; the defaults are ViT-L/14 with registers, 304,371,712 parameters.

    Attributes:
      image_size: side in pixels of the images whose patches the table of positions counts.
      num_register_tokens: tokens without a position, beside the class token and the patches.
      layer_scale: initial value of the factors on both branches of a block; None for a network without them.
      interpolate_antialias: whether the table of positions is resized by the antialiased bicubic filter.
      interpolate_offset: added to the size that it is resized to when the scale is formed (0.1 in old checkpoints).
    """

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    patch_size: int = 14
    mlp_ratio: float = 4
    image_size: int = 518
    num_register_tokens: int = 4
    layer_scale: float | None = 1.0
    norm_eps: float = 1e-6
    interpolate_antialias: bool = True
    interpolate_offset: float = 0.0
    precision: Precision = PARITY

    @classmethod
    def vit_s14_reg(cls, precision: Precision = PARITY) -> "Dinov2Config":
        """`dinov2_vits14_reg4`: 22 M parameters."""
        return cls(embed_dim=384, depth=12, num_heads=6, precision=precision)

    @classmethod
    def vit_b14_reg(cls, precision: Precision = PARITY) -> "Dinov2Config":
        """`dinov2_vitb14_reg4`: 87 M parameters."""
        return cls(embed_dim=768, depth=12, num_heads=12, precision=precision)

    @classmethod
    def vit_l14_reg(cls, precision: Precision = PARITY) -> "Dinov2Config":
        """`dinov2_vitl14_reg4`, the encoder of Pi3: 304,371,712 parameters."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "Dinov2Config":
        """An encoder for tests."""
        return cls(embed_dim=32, depth=2, num_heads=2, image_size=56, precision=precision)

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "Dinov2Config":
        """The config of a `config.json` of transformers' `Dinov2WithRegistersModel`.

        Raises:
          ValueError: for a network that is not built here.
        """
        for name, wanted in _FIXED.items():
            if values.get(name, wanted) != wanted:
                raise ValueError(f"{name} is {values[name]!r}: only {wanted!r} is here")
        # transformers leaves out what has its default, which is ViT-B's.
        return cls(
            embed_dim=values.get("hidden_size", 768),
            depth=values.get("num_hidden_layers", 12),
            num_heads=values.get("num_attention_heads", 12),
            patch_size=values.get("patch_size", 16),
            mlp_ratio=values.get("mlp_ratio", 4),
            image_size=values.get("image_size", 224),
            num_register_tokens=values.get("num_register_tokens", 4),
            norm_eps=values.get("layer_norm_eps", 1e-6),
            precision=precision,
        )

    @property
    def grid(self) -> int:
        """Patches along a side of the table of positions."""
        return self.image_size // self.patch_size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageTokens:
    """Tokens of images after the last normalisation.

    Shapes: cls [B, D], registers [B, R, D], patches [B, h w, D] with columns fastest.
    """

    cls: jax.Array
    registers: jax.Array
    patches: jax.Array


class Dinov2(nnx.Module):
    """Encodes images of any size whose sides are multiples of the patch size."""

    def __init__(self, cfg: Dinov2Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        dtype, width, patch = cfg.precision.param_dtype, cfg.embed_dim, (cfg.patch_size, cfg.patch_size)
        small, positions = jax.nn.initializers.normal(1e-6), jax.nn.initializers.truncated_normal(0.02)
        self.cfg = cfg
        self.patch_embed = Conv(3, width, patch, strides=patch, **options)
        self.cls_token = nnx.Param(small(rngs.params(), (width,), dtype))
        self.register_tokens = nnx.Param(small(rngs.params(), (cfg.num_register_tokens, width), dtype))
        # Of the class token, then of the patches.
        self.pos_embed = nnx.Param(positions(rngs.params(), (1 + cfg.grid**2, width), dtype))
        self.blocks = stack.stacked(lambda keys: _block(cfg, keys), cfg.depth, rngs=rngs)
        self.norm = LayerNorm(width, eps=cfg.norm_eps, **options)

    def __call__(self, images: jax.Array, *, mode: stack.Mode = "scan", remat: stack.Remat = "none") -> ImageTokens:
        """Encodes images that are normalised by ImageNet's statistics.

        Shapes: images [B, H, W, 3].

        Args:
          mode, remat: how the blocks run, see `layers.stack.run`; "host_loop" keeps one layer's temporaries.

        Raises:
          ValueError: if a side is no multiple of the patch size.
        """
        patch, first = self.cfg.patch_size, 1 + self.cfg.num_register_tokens
        if images.ndim != 4 or images.shape[1] % patch or images.shape[2] % patch or images.shape[3] != 3:
            raise ValueError(f"images {tuple(images.shape)} must be [B, H, W, 3] with sides that {patch} divides")
        with images_apart():
            x = constrain(self._tokens(images), "batch", "seq", "embed")
            x, _ = stack.run(self.blocks, x, apply_block, mode=mode, remat=remat)
            x = self.norm(x)
        return ImageTokens(x[:, 0], x[:, 1:first], x[:, first:])

    def _tokens(self, images: jax.Array) -> jax.Array:
        """Shapes: [B, H, W, 3] -> [B, 1 + R + h w, D]: the class, the registers, the patches row by row."""
        compute = self.cfg.precision.compute
        patches = self.patch_embed(images)
        patches = rearrange(patches + self._positions(*patches.shape[1:3]), "b h w d -> b (h w) d")
        cls = compute(self.cls_token[...]) + compute(self.pos_embed[0])
        leading = jnp.concatenate([cls[None], compute(self.register_tokens[...])])
        return jnp.concatenate([jnp.broadcast_to(leading, (len(patches), *leading.shape)), patches], axis=1)

    def _positions(self, height: int, width: int) -> jax.Array:
        """The table of positions, resized in float32 to another grid of patches. Shapes: -> [h, w, D]."""
        cfg = self.cfg
        table = self.pos_embed[1:].reshape(cfg.grid, cfg.grid, -1)
        if (height, width) != (cfg.grid, cfg.grid):
            offset: dict[str, Any] = {"size": (height, width)}
            if cfg.interpolate_offset:
                factors = ((size + cfg.interpolate_offset) / cfg.grid for size in (height, width))
                offset = {"scale_factor": tuple(factors)}
            table = resize(table.astype(jnp.float32), mode="bicubic", antialias=cfg.interpolate_antialias, **offset)
        return cfg.precision.compute(table)


def _block(cfg: Dinov2Config, rngs: nnx.Rngs) -> ViTBlock:
    return ViTBlock(
        cfg.embed_dim,
        cfg.num_heads,
        mlp_ratio=cfg.mlp_ratio,
        eps=cfg.norm_eps,
        layer_scale=cfg.layer_scale,
        precision=cfg.precision,
        rngs=rngs,
    )


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    *prefixed(vit_block.SHARDING, "blocks"),
    (r"^patch_embed/kernel$", (None, None, "conv_in", "conv_out")),
    (r"^(patch_embed/bias|cls_token|register_tokens|pos_embed|norm/(scale|bias))$", ()),
)
