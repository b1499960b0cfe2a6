"""Attention of the current frame to what is remembered of others, `sam2/modeling/memory_attention.py`."""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers import stack
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import ACTIVATIONS
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.layers.rope import grid_angles, rotate_interleaved
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.ops.attention import Full, Mask, Segments, attention
from rvseg_jax.parallel import constrain

_NORM_EPS = 1e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MemoryTokens:
    """What a frame can attend to: memories of frames, then tokens of object pointers, in slots that may be empty.

    Attributes:
      frames: [B, S, h * w, M], a memory a slot.
      frames_pos: [B, S, h * w, M], their position encodings in space and time.
      frames_valid: bool [B, S], False for an empty slot.
      pointers: [B, P, M].
      pointers_pos: [B, P, M].
      pointers_valid: bool [B, P].
    """

    frames: jax.Array
    frames_pos: jax.Array
    frames_valid: jax.Array
    pointers: jax.Array
    pointers_pos: jax.Array
    pointers_valid: jax.Array


class RoPEAttention(nnx.Module):
    """Attention whose queries and keys are rotated by their place in the image; keys that belong to none are not."""

    def __init__(self, features: int, kv_features: int, *, heads: int, precision: Precision, rngs: nnx.Rngs):
        self.q_proj = Linear(features, features, precision=precision, rngs=rngs)
        self.k_proj = Linear(kv_features, features, precision=precision, rngs=rngs)
        self.v_proj = Linear(kv_features, features, precision=precision, rngs=rngs)
        self.out_proj = Linear(features, features, precision=precision, rngs=rngs)
        self.heads = heads
        self.precision = precision

    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        pointers: jax.Array | None = None,
        segments: Segments | None = None,
    ) -> jax.Array:
        """Attends to keys of whole images, then to keys without a place, `pointers`; `values` are of both.

        Shapes: queries [B, T, D], keys [B, S * T, Dk], pointers [B, P, Dk], values [B, S * T + P, Dk],
          angles (cosines, sines) each [T, H / 2] -> [B, T, D].
        """
        batch, length, features = queries.shape
        heads = (self.heads, features // self.heads)
        q = rotate_interleaved(self.q_proj(queries).reshape(batch, length, *heads), *angles)
        k = self.k_proj(keys).reshape(-1, length, *heads)  # one image a row, as all have the same angles
        k = rotate_interleaved(k, *angles).reshape(batch, -1, *heads)
        if pointers is not None:
            k = jnp.concatenate([k, self.k_proj(pointers).reshape(batch, -1, *heads)], axis=1)
        v = self.v_proj(values).reshape(batch, -1, *heads)
        mask: Mask = Full() if segments is None else segments
        out = attention(q, k, v, mask=mask, precision=self.precision.matmul)
        return self.out_proj(out.reshape(batch, length, features))


class MemoryAttentionLayer(nnx.Module):
    """Pre-normalised self-attention, attention to the memories, and feed-forward."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        settings, precision, width = cfg.memory_attention, cfg.precision, cfg.d_model
        heads = settings.num_heads
        self.self_attn = RoPEAttention(width, width, heads=heads, precision=precision, rngs=rngs)
        self.cross_attn_image = RoPEAttention(width, cfg.mem_dim, heads=heads, precision=precision, rngs=rngs)
        self.linear1 = Linear(width, settings.dim_feedforward, precision=precision, rngs=rngs)
        self.linear2 = Linear(settings.dim_feedforward, width, precision=precision, rngs=rngs)
        self.norm1 = LayerNorm(width, eps=_NORM_EPS, precision=precision, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=_NORM_EPS, precision=precision, rngs=rngs)
        self.norm3 = LayerNorm(width, eps=_NORM_EPS, precision=precision, rngs=rngs)
        self.settings = settings

    def __call__(
        self,
        x: jax.Array,
        position: jax.Array,
        memory: tuple[jax.Array, jax.Array, jax.Array],
        angles: tuple[jax.Array, jax.Array],
        segments: Segments,
        dropout: jax.Array | None = None,
    ) -> jax.Array:
        """Shapes: x [B, T, D], position [T, D], memory (keys, pointer keys, values), dropout a key -> [B, T, D]."""
        keys, pointers, values = memory
        drop = [partial(_dropped, share=self.settings.dropout, key=dropout, place=place) for place in range(4)]
        normed = self.norm1(x)
        placed = normed + position if self.settings.pos_enc_at_attn else normed
        x = x + drop[0](self.self_attn(placed, placed, normed, angles))
        normed = self.norm2(x)
        placed = normed + position if self.settings.pos_enc_at_cross_attn_queries else normed
        x = x + drop[1](self.cross_attn_image(placed, keys, values, angles, pointers, segments))
        hidden = drop[2](ACTIVATIONS[self.settings.activation](self.linear1(self.norm3(x))))
        return constrain(x + drop[3](self.linear2(hidden)), "batch", None, None)


class MemoryAttention(nnx.Module):
    """Features of the current frame, conditioned on the memories."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        layers = stack.stacked(
            lambda keys: MemoryAttentionLayer(cfg, rngs=keys), cfg.memory_attention.num_layers, rngs=rngs
        )
        self.layers = cast(MemoryAttentionLayer, layers)  # with a leading [L] on every parameter
        self.norm = LayerNorm(cfg.d_model, eps=_NORM_EPS, precision=cfg.precision, rngs=rngs)
        self.cfg = cfg

    def __call__(
        self,
        current: jax.Array,
        position: jax.Array,
        memory: MemoryTokens,
        *,
        remat: stack.Remat = "none",
        dropout: jax.Array | None = None,
    ) -> jax.Array:
        """Conditions features on memories; a row without any valid memory attends to nothing.

        Shapes: current [B, h, w, D], position [h, w, D] -> [B, h, w, D].

        Args:
          remat: what the backward pass recomputes.
          dropout: key that says which activations are left out; None keeps all.
        """
        batch, height, width, features = current.shape
        settings, compute = self.cfg.memory_attention, self.cfg.precision.compute
        x = compute(current.reshape(batch, height * width, features))
        position = compute(position.reshape(height * width, features))
        if settings.pos_enc_at_input:
            x = x + 0.1 * position
        frames = compute(memory.frames).reshape(batch, -1, memory.frames.shape[-1])
        keys, pointers = frames, compute(memory.pointers)
        values = jnp.concatenate([frames, pointers], axis=1)
        if settings.pos_enc_at_cross_attn_keys:
            keys = keys + compute(memory.frames_pos).reshape(keys.shape)
            pointers = pointers + compute(memory.pointers_pos)
        valid = jnp.repeat(memory.frames_valid, height * width, axis=1)
        valid = jnp.concatenate([valid, memory.pointers_valid], axis=1)
        segments = Segments(jnp.zeros((batch, height * width), jnp.int32), jnp.where(valid, 0, -1))
        angles = _angles(height, width, features // settings.num_heads, settings.rope_theta)
        shared = (position, (keys, pointers, values), angles, segments)
        keys_of_layers = None if dropout is None else jax.random.split(dropout, settings.num_layers)
        apply = _apply_layer if dropout is None else _apply_layer_with_dropout
        x, _ = stack.run(self.layers, x, apply, *shared, per_layer=keys_of_layers, remat=remat)
        return self.norm(x).reshape(current.shape)


def _angles(height: int, width: int, features: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every cell: upstream's first half of the pairs turns with x, the second with y."""
    by_row = grid_angles((height, width), (features // 2, features // 2), theta=theta)
    angles = np.roll(by_row, features // 4, axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _apply_layer(layer: MemoryAttentionLayer, x: jax.Array, *shared: Any) -> jax.Array:
    return layer(x, *shared)


def _apply_layer_with_dropout(
    layer: MemoryAttentionLayer,
    x: jax.Array,
    key: jax.Array,
    position: jax.Array,
    memory: tuple[jax.Array, jax.Array, jax.Array],
    angles: tuple[jax.Array, jax.Array],
    segments: Segments,
) -> jax.Array:
    return layer(x, position, memory, angles, segments, key)


def _dropped(x: jax.Array, *, share: float, key: jax.Array | None, place: int) -> jax.Array:
    """`x` with a share of its entries set to 0 and the others scaled up; each `place` has entries of its own."""
    if key is None or share == 0:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - share, x.shape)
    return jnp.where(kept, x / (1 - share), 0)


# Logical axes of the parameters of `MemoryAttention`, see `parallel.rules`.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"layers/(self_attn|cross_attn_image)/[qkv]_proj/kernel$", ("layers", "embed", "heads")),
    (r"layers/(self_attn|cross_attn_image)/out_proj/kernel$", ("layers", "heads", "embed")),
    (r"layers/linear1/kernel$", ("layers", "embed", "mlp")),
    (r"layers/linear2/kernel$", ("layers", "mlp", "embed")),
    (r"/(scale|bias)$", ()),
)
