"""The two-way transformer of SAM: tokens attend to the image and the image attends back to the tokens.

Source: sam2/modeling/sam/transformer.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import MLP
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.ops.attention import Full, Mask, Segments, attention

_EPS = 1e-5
_FULL = Full()


class Attention(nnx.Module):
    """Multi-head attention that is narrower inside by `downsample_rate`."""

    def __init__(self, cfg: Sam2Config, *, downsample_rate: int, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        inner = cfg.d_model // downsample_rate
        self.q_proj = Linear(cfg.d_model, inner, **options)
        self.k_proj = Linear(cfg.d_model, inner, **options)
        self.v_proj = Linear(cfg.d_model, inner, **options)
        self.out_proj = Linear(inner, cfg.d_model, **options)
        self.heads = cfg.mask_decoder.transformer_heads
        self.precision = cfg.precision

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask = _FULL) -> jax.Array:
        """Shapes: q [B, Tq, D], k and v [B, Tk, D] -> [B, Tq, D]."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        q, k, v = (rearrange(x, "b t (n h) -> b t n h", n=self.heads) for x in projected)
        y = attention(q, k, v, mask=mask, precision=self.precision.matmul)
        return self.out_proj(rearrange(y, "b t n h -> b t (n h)"))


class TwoWayAttentionBlock(nnx.Module):
    """Self-attention of tokens, tokens to image, feed-forward, image to tokens; post-normalised.

    Args:
      first: the first block, whose self-attention sees no positions and replaces the tokens.
    """

    def __init__(self, cfg: Sam2Config, *, first: bool, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        decoder = cfg.mask_decoder
        self.self_attn = Attention(cfg, downsample_rate=1, rngs=rngs)
        self.norm1 = LayerNorm(cfg.d_model, eps=_EPS, **options)
        self.cross_attn_token_to_image = Attention(cfg, downsample_rate=decoder.attention_downsample_rate, rngs=rngs)
        self.norm2 = LayerNorm(cfg.d_model, eps=_EPS, **options)
        self.mlp = MLP(cfg.d_model, decoder.transformer_mlp, cfg.d_model, activation="relu", **options)
        self.norm3 = LayerNorm(cfg.d_model, eps=_EPS, **options)
        self.norm4 = LayerNorm(cfg.d_model, eps=_EPS, **options)
        self.cross_attn_image_to_token = Attention(cfg, downsample_rate=decoder.attention_downsample_rate, rngs=rngs)
        self.first = first

    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        token_positions: jax.Array,
        image_positions: jax.Array,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Shapes: tokens [B, T, D], image [B, HW, D], positions [B, T, D], [HW, D], valid [B, T] -> tokens, image."""
        to_tokens: Mask = _FULL
        from_image: Mask = _FULL
        if valid is not None:
            seen = jnp.where(valid, 0, -1)
            to_tokens = Segments(jnp.zeros_like(seen), seen)
            from_image = Segments(jnp.zeros((len(seen), image.shape[1]), seen.dtype), seen)
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, to_tokens)
        else:
            q = tokens + token_positions
            tokens = tokens + self.self_attn(q, q, tokens, to_tokens)
        tokens = self.norm1(tokens)
        q, k = tokens + token_positions, image + image_positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(q, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        q, k = tokens + token_positions, image + image_positions
        image = self.norm4(image + self.cross_attn_image_to_token(k, q, tokens, from_image))
        return tokens, image


class TwoWayTransformer(nnx.Module):
    """A few two-way blocks, then one more attention of the tokens to the image."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        decoder = cfg.mask_decoder
        blocks = [TwoWayAttentionBlock(cfg, first=i == 0, rngs=rngs) for i in range(decoder.transformer_depth)]
        self.layers = nnx.List(blocks)
        self.final_attn_token_to_image = Attention(cfg, downsample_rate=decoder.attention_downsample_rate, rngs=rngs)
        self.norm_final_attn = LayerNorm(cfg.d_model, eps=_EPS, precision=cfg.precision, rngs=rngs)

    def __call__(
        self, image: jax.Array, image_positions: jax.Array, tokens: jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The tokens as they come in are their own positions; nothing sees those that are not valid.

        Shapes: image [B, HW, D], image_positions [HW, D], tokens [B, T, D], valid bool [B, T] or None for all
          -> tokens [B, T, D], image [B, HW, D].
        """
        positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, positions, image_positions, valid)
        q, k = tokens + positions, image + image_positions
        return self.norm_final_attn(tokens + self.final_attn_token_to_image(q, k, image)), image
