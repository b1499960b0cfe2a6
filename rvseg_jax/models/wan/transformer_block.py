"""Parts of the Wan transformer: patches, rotary tables, time and text embeddings, adaLN, the block."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.embed import sinusoidal
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import MLP
from rvseg_jax.layers.norm import LayerNorm, RMSNorm
from rvseg_jax.layers.rope import axis_angles, rotate_interleaved
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.ops.attention import attention
from rvseg_jax.parallel import constrain

ROPE_THETA = 10_000.0

Rope = tuple[jax.Array, jax.Array]


class PatchEmbedding(Conv):
    """A convolution whose strides are its window, computed as one matrix product over flattened patches."""

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        super().__init__(
            cfg.in_channels,
            cfg.inner_dim,
            cfg.patch_size,
            strides=cfg.patch_size,
            precision=cfg.precision,
            rngs=rngs,
        )

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Shapes: latents [B, T, H, W, C] -> [B, tokens, D], tokens in the order t, h, w, w fastest."""
        compute, (pt, ph, pw) = self.precision.compute, self.strides
        patches = rearrange(compute(latents), "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)
        kernel = compute(self.kernel[...]).reshape(patches.shape[-1], -1)
        tokens = jnp.matmul(patches, kernel, precision=self.precision.matmul)
        return tokens if self.bias is None else tokens + compute(self.bias[...])


def unpatchify(tokens: jax.Array, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> jax.Array:
    """Lays output tokens out as latents; inside a token the channel is fastest, unlike in the patch embedding.

    Shapes: tokens [B, tokens, (pt ph pw C)] -> [B, T, H, W, C].
    """
    (t, h, w), (pt, ph, pw) = grid, patch_size
    return rearrange(tokens, "b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def rotary_tables(cfg: WanTransformerConfig, grid: tuple[int, int, int]) -> Rope:
    """Cosines and sines of the rotary angles of a grid of tokens, t slowest; angles are formed in float64.

    Only one short table for each axis enters the program as a constant; the whole of it would add 17 MB at
    32,760 tokens.

    Shapes: -> two float32 [T, H/2].
    """
    tables = []
    for function in (np.cos, np.sin):
        parts = []
        for axis, (size, width) in enumerate(zip(grid, cfg.rope_axes, strict=True)):
            shape = [1, 1, 1, width // 2]
            shape[axis] = size
            angles = axis_angles(np.arange(size), width, theta=ROPE_THETA)
            part = jnp.asarray(function(angles).astype(np.float32).reshape(shape))
            parts.append(jnp.broadcast_to(part, (*grid, width // 2)))
        tables.append(jnp.concatenate(parts, axis=-1).reshape(math.prod(grid), -1))
    return tables[0], tables[1]


class ConditionEmbedder(nnx.Module):
    """Embeds the time step and the text.

    The time path is computed in float32: three small products, whose results scale every activation.
    """

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = cfg.inner_dim
        time: dict[str, Any] = {"precision": cfg.precision.in_float32(), "rngs": rngs}
        self.time_embedder = MLP(cfg.freq_dim, width, width, activation="silu", **time)
        self.time_proj = Linear(width, 6 * width, **time)
        self.text_embedder = MLP(cfg.text_dim, width, width, activation="gelu_tanh", precision=cfg.precision, rngs=rngs)
        self.freq_dim = cfg.freq_dim

    def time(self, timestep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Shapes: timestep [B] in 0..1000 -> embedding [B, D] and its projection [B, 6D], float32."""
        embedding = self.time_embedder(sinusoidal(timestep, self.freq_dim))
        return embedding, self.time_proj(jax.nn.silu(embedding))

    def text(self, text: jax.Array) -> jax.Array:
        """Shapes: text [B, S, text_dim] -> [B, S, D]."""
        return self.text_embedder(text)


class AdaNorm(nnx.Module):
    """Layer normalisation without parameters, scaled and shifted from outside; float32 throughout."""

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(
            cfg.inner_dim, eps=cfg.eps, use_scale=False, use_bias=False, precision=cfg.precision.in_float32(), rngs=rngs
        )

    def __call__(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        """Shapes: x [B, T, D], shift and scale [B, 1, D] -> float32 [B, T, D]."""
        return self.norm(x) * (1 + scale) + shift


def adaln_table(cfg: WanTransformerConfig, rows: int, *, rngs: nnx.Rngs) -> nnx.Param:
    """Learned part of `rows` adaLN vectors, [1, rows, D]; the time embedding is added to it."""
    init = jax.nn.initializers.normal(stddev=cfg.inner_dim**-0.5)
    return nnx.Param(init(rngs.params(), (1, rows, cfg.inner_dim), cfg.precision.param_dtype))


class WanAttention(nnx.Module):
    """Attention with RMS-normalised queries and keys; the norm acts over all heads together."""

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = cfg.inner_dim
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.to_q = Linear(width, width, **options)
        self.to_k = Linear(width, width, **options)
        self.to_v = Linear(width, width, **options)
        self.to_out = Linear(width, width, **options)
        self.norm_q = RMSNorm(width, eps=cfg.eps, **options)
        self.norm_k = RMSNorm(width, eps=cfg.eps, **options)
        self.heads = cfg.num_attention_heads
        self.precision = cfg.precision

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        rope: Rope | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attends to `context`, or to `x` itself.

        Shapes: x [B, T, D], context [B, S, D], rope (cos, sin) each [T, H/2], bias [B, 1, 1, S] -> [B, T, D].
        """
        sequence = "seq" if context is None else None  # every device attends to the whole text
        context = x if context is None else context
        q = self._heads(self.norm_q(self.to_q(x)), "seq")
        k = self._heads(self.norm_k(self.to_k(context)), sequence)
        v = self._heads(self.to_v(context), sequence)
        if rope is not None:
            q, k = rotate_interleaved(q, *rope), rotate_interleaved(k, *rope)
        out = attention(q, k, v, bias=bias, precision=self.precision.matmul)
        return self.to_out(rearrange(out, "b t n h -> b t (n h)"))

    def _heads(self, x: jax.Array, sequence: str | None) -> jax.Array:
        x = rearrange(x, "b t (n h) -> b t n h", n=self.heads)
        return constrain(x, "batch", sequence, "heads", None)


class WanBlock(nnx.Module):
    """Self-attention and feed-forward under adaLN with gates, and between them an ungated cross-attention."""

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = cfg.inner_dim
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.norm1 = AdaNorm(cfg, rngs=rngs)
        self.attn1 = WanAttention(cfg, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=cfg.eps, **options) if cfg.cross_attn_norm else None
        self.attn2 = WanAttention(cfg, rngs=rngs)
        self.norm3 = AdaNorm(cfg, rngs=rngs)
        self.ffn = MLP(width, cfg.ffn_dim, width, activation="gelu_tanh", **options)
        self.scale_shift_table = adaln_table(cfg, 6, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        modulation: jax.Array,
        text: jax.Array,
        text_bias: jax.Array | None,
        rope: Rope,
    ) -> jax.Array:
        """One block; `scale_shift_table` is already part of `modulation`.

        Gated residuals are added in float32 and rounded once, as upstream does.

        Shapes: x [B, T, D], modulation [B, 6, D] float32, text [B, S, D], text_bias [B, 1, 1, S] or None,
          rope (cos, sin) each [T, H/2] -> [B, T, D].
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=1)
        x = (x + gate1 * self.attn1(self.norm1(x, shift1, scale1), rope=rope)).astype(x.dtype)
        x = x + self.attn2(x if self.norm2 is None else self.norm2(x), text, bias=text_bias)
        x = (x + gate2 * self.ffn(self.norm3(x, shift2, scale2))).astype(x.dtype)
        return constrain(x, "batch", "seq", "embed")


def apply_block(
    block: WanBlock,
    x: jax.Array,
    modulation: jax.Array,
    text: jax.Array,
    text_bias: jax.Array | None,
    rope: Rope,
) -> jax.Array:
    """`block(...)` as one function object, which `layers.stack.run` needs to compile a block once."""
    return block(x, modulation, text, text_bias, rope)
