"""The mask decoder of MLLMSeg (Wang et al. 2025, arXiv 2508.04107): fusion of detail and semantics, then masks.

Upstream: `RESDecoder` in `mllmseg/mllmseg_internvl.py`, with `mllmseg/decoder_layer`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.norm import BatchNorm, LayerNorm
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig
from rvseg_jax.models.mllmseg.dysample import DySample
from rvseg_jax.ops.attention import attention
from rvseg_jax.parallel import Table, constrain

_EPS = 1e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchStatistics:
    """What a batch norm saw in training, of every image by itself.

    Shapes: mean, var float32 [B, C], the variance without Bessel's correction; count float32 [B], numbers behind each.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


class Attention(nnx.Module):
    """torch's `MultiheadAttention`."""

    def __init__(self, width: int, heads: int, *, precision: Precision, rngs: nnx.Rngs):
        self.q = Linear(width, width, precision=precision, rngs=rngs)
        self.k = Linear(width, width, precision=precision, rngs=rngs)
        self.v = Linear(width, width, precision=precision, rngs=rngs)
        self.out = Linear(width, width, precision=precision, rngs=rngs)
        self.heads = heads
        self.precision = precision

    def __call__(self, x: jax.Array, memory: jax.Array, *, dropout: float = 0.0, key: jax.Array | None = None):
        """Shapes: x [B, T, D], memory [B, S, D] -> [B, T, D]."""
        v = self.v(memory)
        if memory.shape[1] == 1 and key is None:
            # All weights are 1: queries and keys have no effect, and get no gradient upstream either.
            return jnp.broadcast_to(self.out(v), x.shape)
        q, k, v = (
            constrain(rearrange(y, "b t (n h) -> b t n h", n=self.heads), "batch", "seq", "heads", None)
            for y in (self.q(x), self.k(memory), v)
        )
        if key is None or not dropout:
            mixed = attention(q, k, v, precision=self.precision.matmul)
        else:
            mixed = _attention_with_dropout(q, k, v, dropout, key, self.precision)
        return self.out(rearrange(mixed, "b t n h -> b t (n h)"))


def _attention_with_dropout(q, k, v, rate: float, key: jax.Array, precision: Precision) -> jax.Array:
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision=precision.matmul) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", dropped(weights, rate, key), v, precision=precision.matmul)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with elements at zero with probability `rate`, the others enlarged; `x` itself without a key."""
    if key is None or not rate:
        return x
    # Fused into what reads it, the draw is repeated there, and TPU's compiler takes several times as long.
    kept = jax.lax.optimization_barrier(jax.random.bernoulli(key, 1 - rate, x.shape))
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


class AttentionLayer(nnx.Module):
    """A post-normalised decoder layer of one, with the normalisation that upstream puts behind its last layer."""

    def __init__(self, cfg: MaskDecoderConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.self_attn = Attention(cfg.width, cfg.num_heads, **options)
        self.cross_attn = Attention(cfg.width, cfg.num_heads, **options)
        self.up = Linear(cfg.width, cfg.feedforward, **options)
        self.down = Linear(cfg.feedforward, cfg.width, **options)
        self.norm1, self.norm2, self.norm3, self.norm = (LayerNorm(cfg.width, eps=_EPS, **options) for _ in range(4))
        self.dropout = cfg.dropout

    def among(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Self-attention, which sees no memory. Shapes: x [B, T, D] -> [B, T, D]."""
        inside, branch = _keys(key, 2)
        y = self.self_attn(x, x, dropout=self.dropout, key=inside)
        return self.norm1(x + dropped(y, self.dropout, branch))

    def across(self, x: jax.Array, memory: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What follows on it. Shapes: x [B, T, D], memory [B, S, D] -> [B, T, D]."""
        inside, first, hidden, second = _keys(key, 4)
        y = self.cross_attn(x, memory, dropout=self.dropout, key=inside)
        x = self.norm2(x + dropped(y, self.dropout, first))
        y = self.down(dropped(jax.nn.relu(self.up(x)), self.dropout, hidden))
        return self.norm(self.norm3(x + dropped(y, self.dropout, second)))


def _keys(key: jax.Array | None, count: int) -> list[Any]:
    return [None] * count if key is None else list(jax.random.split(key, count))


class MaskDecoder(nnx.Module):
    """A mask for every phrase, from patches, the image tokens that the language model has read, and its words.

    `fuse` sees the image alone, so that several phrases share it. In training they then also share its dropout, which
    upstream draws anew for each.
    """

    def __init__(self, cfg: MaskDecoderConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.cfg = cfg
        self.image_down = Linear(cfg.text_width, cfg.width, **options)
        self.text_down = Linear(cfg.text_width, cfg.width, **options)
        self.detail = AttentionLayer(cfg, rngs=rngs)
        self.upsample = DySample(cfg.width, scale=cfg.scale, groups=cfg.groups, **options)
        self.fusion = Linear(3 * cfg.width, cfg.width, **options)
        self.text = AttentionLayer(cfg, rngs=rngs)
        ones = (1, 1)
        self.to_pixels = Conv(cfg.width, cfg.patch_size**2, (3, 3), padding=(ones, ones), **options)
        self.norm = BatchNorm(cfg.patch_size**2, eps=_EPS, **options)
        self.smooth = Conv(1, 1, (5, 5), padding=((2, 2), (2, 2)), **options)

    def fuse(
        self,
        patches: jax.Array,
        read: jax.Array,
        *,
        key: jax.Array | None = None,
        taps: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Detail of the vision transformer and semantics of the language model, and self-attention over both.

        Shapes: patches [B, P, D], read [B, P / scale^2, Dt], both of square grids, row by row -> [B, P, D].

        Args:
          key: of the dropout; None is none.
          taps: takes "attended_vision", "upsampled_language" and "fused".
        """
        grid = round(read.shape[1] ** 0.5)
        first, second, third = _keys(key, 3)
        read = self.image_down(read)
        attended = self.detail.across(self.detail.among(patches, first), read, second)
        enlarged = self.upsample(rearrange(read, "b (h w) d -> b h w d", h=grid))
        enlarged = rearrange(enlarged, "b h w d -> b (h w) d")
        compute = self.cfg.precision.compute
        fused = self.fusion(jnp.concatenate([attended, compute(patches), enlarged], axis=-1))
        if taps is not None:
            taps.update(attended_vision=attended, upsampled_language=enlarged, fused=fused)
        return constrain(self.text.among(fused, third), "batch", "seq", "embed")

    def features(self, fused: jax.Array, words: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Every phrase's view of the image. Shapes: fused [B, P, D] of `fuse`, words [B, K, Dt] -> [B, K, P, D]."""
        phrases = words.shape[1]
        words = rearrange(self.text_down(words), "b k d -> (b k) 1 d")
        seen = self.text.across(jnp.repeat(fused, phrases, axis=0), words, key)
        return rearrange(seen, "(b k) p d -> b k p d", k=phrases)

    def logits(
        self, features: jax.Array, *, counted: jax.Array | None = None
    ) -> tuple[jax.Array, BatchStatistics | None]:
        """Masks before the sigmoid.

        Shapes: features [B, K, P, D] -> float32 [B, K, S, S] with S = patch size x side of the grid.

        Args:
          counted: bool [B, K], phrases that are there: the batch norm then takes the statistics of each image's own
            phrases, as upstream does in training, in place of the stored ones.

        Returns:
          The logits, and the statistics that were taken.
        """
        batch, phrases, positions, _ = features.shape
        grid, patch = round(positions**0.5), self.cfg.patch_size
        # Convolutions see whole images: with tokens cut between devices, XLA doubled the gradient of the last kernel.
        features = constrain(features, "batch", None, None, None)
        x = self.to_pixels(rearrange(features, "b k (h w) d -> (b k) h w d", h=grid))
        x = x.reshape(batch, phrases, grid, grid, -1)
        statistics = None if counted is None else _statistics(x, counted)
        if statistics is None:
            x = self.norm(x)
        else:
            x = self.norm(x, (statistics.mean[:, None, None, None], statistics.var[:, None, None, None]))
        x = jax.nn.relu(x)
        x = constrain(rearrange(x, "b k h w (r c) -> (b k) (h r) (w c) 1", r=patch), "batch", None, None, None)
        x = self.smooth(x)[..., 0].astype(jnp.float32)
        return x.reshape(batch, phrases, *x.shape[1:]), statistics

    def __call__(self, patches: jax.Array, read: jax.Array, words: jax.Array) -> jax.Array:
        """Masks before the sigmoid, without dropout and by stored statistics.

        Shapes: patches [B, P, D], read [B, P / scale^2, Dt], words [B, K, Dt] -> float32 [B, K, S, S].
        """
        return self.logits(self.features(self.fuse(patches, read), words))[0]


def _statistics(x: jax.Array, counted: jax.Array) -> BatchStatistics:
    """Over the phrases that count. Shapes: x [B, K, h, w, C], counted bool [B, K]."""
    x = x.astype(jnp.float32)
    weight = counted[:, :, None, None, None].astype(jnp.float32)
    count = (counted.sum(1) * (x.shape[2] * x.shape[3])).astype(jnp.float32)
    size = jnp.maximum(count, 1)[:, None]
    mean = (x * weight).sum((1, 2, 3)) / size
    spread = jnp.square(x - mean[:, None, None, None]) * weight
    return BatchStatistics(mean, spread.sum((1, 2, 3)) / size, count)


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole. The
# decoder is small beside the language model: it is whole on every device.
SHARDING: Table = ((r"", ()),)
