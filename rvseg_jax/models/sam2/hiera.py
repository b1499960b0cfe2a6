"""The Hiera trunk: a vision transformer in four stages, most of whose blocks attend within windows.

Ryali et al. 2023 (arXiv 2306.00989), with the absolute windowed positions of Bolya et al. 2023 (arXiv 2311.05613).
Source: sam2/modeling/backbones/hieradet.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import MLP
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.sam2.config import HieraConfig
from rvseg_jax.ops.attention import attention
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import constrain


def to_windows(x: jax.Array, size: int) -> jax.Array:
    """Cuts a grid into windows; zeros are put below and to the right where they do not divide it.

    Shapes: x [B, H, W, C] -> [B * windows, size, size, C].
    """
    pad = [(0, -length % size) for length in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    return rearrange(x, "b (h p) (w q) c -> (b h w) p q c", p=size, q=size)


def from_windows(windows: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of `to_windows` for a grid of this size. Shapes: [B * windows, P, P, C] -> [B, H, W, C]."""
    size = windows.shape[1]
    rows, columns = -(-height // size), -(-width // size)
    x = rearrange(windows, "(b h w) p q c -> b (h p) (w q) c", h=rows, w=columns)
    return x[:, :height, :width]


def max_pool(x: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """The largest value of every cell of `stride`. Shapes: x [B, H, W, C] -> [B, H // s, W // s, C]."""
    rows, columns = x.shape[1] // stride[0], x.shape[2] // stride[1]
    x = x[:, : rows * stride[0], : columns * stride[1]]
    return rearrange(x, "b (h p) (w q) c -> b h w (p q) c", p=stride[0], q=stride[1]).max(axis=-2)


class MultiScaleAttention(nnx.Module):
    """Self-attention whose queries may be pooled, so that fewer come out than go in."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, precision: Precision, rngs: nnx.Rngs):
        self.qkv = Linear(inputs, 3 * outputs, precision=precision, rngs=rngs)
        self.proj = Linear(outputs, outputs, precision=precision, rngs=rngs)
        self.heads = heads
        self.precision = precision

    def __call__(self, x: jax.Array, pool: tuple[int, int] | None) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H // s, W // s, C']."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        if pool is not None:
            q = max_pool(q, pool)
        height = q.shape[1]
        q, k, v = (rearrange(y, "b h w (n d) -> b (h w) n d", n=self.heads) for y in (q, k, v))
        y = attention(q, k, v, precision=self.precision.matmul)
        return self.proj(rearrange(y, "b (h w) n d -> b h w (n d)", h=height))


class MultiScaleBlock(nnx.Module):
    """Pre-normalised attention and feed-forward; the first block of a stage widens and pools.

    Args:
      window: side of the attention windows in cells of the input, 0 for attention to the whole image.
      pool: stride of the pooling, or None.
    """

    def __init__(
        self,
        cfg: HieraConfig,
        inputs: int,
        outputs: int,
        heads: int,
        *,
        window: int,
        pool: tuple[int, int] | None,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.norm1 = LayerNorm(inputs, eps=cfg.norm_eps, **options)
        self.attn = MultiScaleAttention(inputs, outputs, heads, **options)
        self.norm2 = LayerNorm(outputs, eps=cfg.norm_eps, **options)
        self.mlp = MLP(outputs, int(outputs * cfg.mlp_ratio), outputs, activation="gelu", **options)
        self.proj = Linear(inputs, outputs, **options) if inputs != outputs else None
        self.window = window
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H // s, W // s, C']."""
        shortcut = x
        x = self.norm1(x)
        if self.proj is not None:
            shortcut = self.proj(x)
            if self.pool is not None:
                shortcut = max_pool(shortcut, self.pool)
        if self.window:
            y = self.attn(to_windows(x, self.window), self.pool)
            y = from_windows(y, *shortcut.shape[1:3])
        else:
            y = self.attn(x, self.pool)
        x = shortcut + y
        x = x + self.mlp(self.norm2(x))
        return constrain(x, "batch", None, None, None)


class Hiera(nnx.Module):
    """Features of an image at the strides of its stages."""

    def __init__(self, cfg: HieraConfig, *, precision: Precision, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(0.02)
        dtype, grid = precision.param_dtype, cfg.window_pos_embed_bkg_spatial_size
        pad = (cfg.patch_padding, cfg.patch_padding)
        self.patch_embed = Conv(
            3,
            cfg.embed_dim,
            (cfg.patch_kernel, cfg.patch_kernel),
            strides=(cfg.patch_stride, cfg.patch_stride),
            padding=(pad, pad),
            precision=precision,
            rngs=rngs,
        )
        self.pos_embed = nnx.Param(init(rngs.params(), (*grid, cfg.embed_dim), dtype))
        window = (cfg.window_spec[0], cfg.window_spec[0])
        self.pos_embed_window = nnx.Param(init(rngs.params(), (*window, cfg.embed_dim), dtype))
        self.blocks = nnx.List(_blocks(cfg, precision=precision, rngs=rngs))
        self.stage_ends = cfg.stage_ends
        self.precision = precision

    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Shapes: images [B, H, W, 3] -> one [B, H / stride, W / stride, C] for each stage, finest first."""
        x = self.patch_embed(images)
        x = constrain(x + self._positions(*x.shape[1:3]), "batch", None, None, None)
        stages = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                stages.append(x)
        return stages

    def _positions(self, height: int, width: int) -> jax.Array:
        """The stretched embedding of the image plus that of the window, laid out like tiles. Shapes: -> [H, W, C]."""
        window = self.pos_embed_window[...].astype(jnp.float32)
        side = window.shape[0]
        if height % side or width % side:
            raise ValueError(f"{height}x{width} patches do not divide into windows of {side}: change the image size")
        stretched = resize(self.pos_embed[...].astype(jnp.float32), (height, width), mode="bicubic")
        return self.precision.compute(stretched + jnp.tile(window, (height // side, width // side, 1)))


def _blocks(cfg: HieraConfig, *, precision: Precision, rngs: nnx.Rngs) -> list[MultiScaleBlock]:
    """All blocks in a row; the first of a stage still has the window of the stage before."""
    blocks, before = [], 0
    for stage, count in enumerate(cfg.stages):
        for place in range(count):
            first = stage > 0 and place == 0
            window = cfg.window_spec[stage - 1 if first else stage]
            blocks.append(
                MultiScaleBlock(
                    cfg,
                    cfg.widths[stage - 1 if first else stage],
                    cfg.widths[stage],
                    cfg.heads[stage],
                    window=0 if before + place in cfg.global_att_blocks else window,
                    pool=cfg.q_stride if first and stage <= cfg.q_pool else None,
                    precision=precision,
                    rngs=rngs,
                )
            )
        before += count
    return blocks
