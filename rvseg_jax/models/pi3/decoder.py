"""The transformers of Pi3: one that alternates between frames and the whole video, and those in front of the heads.

Source: upstream's `pi3/models/pi3.py` (`decode`) and `pi3/models/layers/transformer_head.py`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.rope import grid_angles
from rvseg_jax.layers.vit_block import Rope, ViTBlock, apply_block, images_apart
from rvseg_jax.models.pi3.config import Pi3Config


def frame_rope(cfg: Pi3Config, height: int, width: int, head_width: int) -> Rope:
    """Rotary tables of a frame's tokens: registers at position 0, patches at (row + 1, column + 1), rows first.

    Shapes: -> two float32 [R + h w, head_width // 2].

    Raises:
      ValueError: if 4 does not divide the width of a head.
    """
    if head_width % 4:
        raise ValueError(f"heads of width {head_width} cannot be rotated by rows and columns: make it a multiple of 4")
    patches = grid_angles((height, width), (head_width // 2,) * 2, theta=cfg.rope_theta, first=1)
    angles = np.concatenate([np.zeros((cfg.register_tokens, head_width // 2)), patches])
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


class AlternatingPair(nnx.Module):
    """A block that attends within each frame, then one that attends to all frames of the video."""

    def __init__(self, cfg: Pi3Config, *, rngs: nnx.Rngs):
        self.frame = _decoder_block(cfg, rngs)
        self.across = _decoder_block(cfg, rngs)

    def __call__(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
        """Outputs of the second and of the first block. Shapes: x [B, T, tokens, D] -> two of the same shape."""
        frames = x.shape[1]
        with images_apart():
            within = self.frame(rearrange(x, "b t n d -> (b t) n d"), rope)
        cos, sin = (jnp.tile(table, (frames, 1)) for table in rope)
        x = self.across(rearrange(within, "(b t) n d -> b (t n) d", t=frames), (cos, sin))
        return rearrange(x, "b (t n) d -> b t n d", t=frames), rearrange(within, "(b t) n d -> b t n d", t=frames)


def _decoder_block(cfg: Pi3Config, rngs: nnx.Rngs) -> ViTBlock:
    return ViTBlock(
        cfg.width,
        cfg.num_heads,
        mlp_ratio=cfg.mlp_ratio,
        eps=cfg.norm_eps,
        qk_norm=cfg.qk_norm,
        layer_scale=cfg.layer_scale,
        precision=cfg.precision,
        rngs=rngs,
    )


def alternate(
    pairs: nnx.Module,
    x: jax.Array,
    rope: Rope,
    keep: Iterable[int],
    *,
    mode: stack.Mode = "scan",
    remat: stack.Remat = "none",
) -> dict[int, jax.Array]:
    """Outputs of chosen blocks of the alternating decoder.

    Shapes: x [B, T, tokens, D] -> {block: [B, T, tokens, D]}.

    Args:
      pairs: a stack of `AlternatingPair`; block 2 i is the first of pair i, block 2 i + 1 its second.
      keep: numbers of the blocks.
      mode, remat: see `layers.stack.run`.
    """
    keep = sorted(set(keep))
    places = sorted({block // 2 for block in keep})
    _, kept = stack.run(pairs, (x, x), _apply_pair, rope, mode=mode, remat=remat, taps=places)
    return {block: kept[1 - block % 2][places.index(block // 2)] for block in keep}


def _apply_pair(pair: AlternatingPair, carry: tuple[jax.Array, jax.Array], rope: Rope) -> tuple[jax.Array, jax.Array]:
    return pair(carry[0], rope)


class HeadDecoder(nnx.Module):
    """Blocks that attend within a frame, between two projections and without a last normalisation."""

    def __init__(self, cfg: Pi3Config, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.projects = Linear(inputs, cfg.head_width, **options)
        self.blocks = stack.stacked(lambda keys: _head_block(cfg, keys), cfg.head_depth, rngs=rngs)
        self.linear_out = Linear(cfg.head_width, outputs, **options)

    def __call__(
        self, x: jax.Array, rope: Rope, *, mode: stack.Mode = "scan", remat: stack.Remat = "none"
    ) -> jax.Array:
        """Shapes: x [B, tokens, inputs], a row a frame -> [B, tokens, outputs]."""
        with images_apart():
            y, _ = stack.run(self.blocks, self.projects(x), apply_block, rope, mode=mode, remat=remat)
        return self.linear_out(y)


def _head_block(cfg: Pi3Config, rngs: nnx.Rngs) -> ViTBlock:
    return ViTBlock(
        cfg.head_width,
        cfg.head_heads,
        mlp_ratio=cfg.head_mlp_ratio,
        eps=cfg.norm_eps,
        qk_norm=cfg.head_qk_norm,
        layer_scale=cfg.head_layer_scale,
        precision=cfg.precision,
        rngs=rngs,
    )
