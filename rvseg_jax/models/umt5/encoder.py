"""The UMT5 text encoder (Chung et al. 2023, arXiv 2304.09151), as in `transformers/models/umt5/modeling_umt5.py`.

It differs from T5 in that every layer has its own relative position bias.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.layers import stack
from rvseg_jax.layers.embed import Embed
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import GatedMLP
from rvseg_jax.layers.norm import RMSNorm
from rvseg_jax.ops.attention import Dense, attention
from rvseg_jax.parallel import constrain


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of a UMT5 encoder, under upstream's names; the defaults are XXL as Wan ships it.

    Attributes:
      d_kv: width of a head; num_heads * d_kv need not be d_model.
      relative_attention_num_buckets: rows of the bias table, half of them for keys after the query.
      relative_attention_max_distance: distance in tokens from which on all share one bucket.
    """

    vocab_size: int = 256_384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    precision: Precision = PARITY

    @classmethod
    def xxl(cls, precision: Precision = PARITY) -> "UMT5Config":
        """The text encoder of Wan 2.1: 5,680,910,336 parameters."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "UMT5Config":
        """An encoder for tests."""
        return cls(
            vocab_size=128,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            precision=precision,
        )

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "UMT5Config":
        """The config of an upstream `text_encoder/config.json`; fields of the decoder and of training are unused.

        Raises:
          ValueError: if the feed-forward is not the gated tanh-GELU.
        """
        projection = values.get("feed_forward_proj", "gated-gelu")
        if projection != "gated-gelu":
            raise ValueError(f"feed_forward_proj {projection!r} is not supported: use 'gated-gelu'")
        known = {entry.name for entry in fields(cls)} - {"precision"}
        return cls(**{name: values[name] for name in known & set(values)}, precision=precision)


class UMT5Attention(nnx.Module):
    """Self-attention with a bias by relative position and, as in all T5s, without the factor 1/sqrt(d)."""

    def __init__(self, cfg: UMT5Config, *, rngs: nnx.Rngs):
        inner = cfg.num_heads * cfg.d_kv
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.q = Linear(cfg.d_model, inner, use_bias=False, **options)
        self.k = Linear(cfg.d_model, inner, use_bias=False, **options)
        self.v = Linear(cfg.d_model, inner, use_bias=False, **options)
        self.o = Linear(inner, cfg.d_model, use_bias=False, **options)
        self.relative_attention_bias = Embed(cfg.relative_attention_num_buckets, cfg.num_heads, **options)
        self.heads = cfg.num_heads
        self.precision = cfg.precision

    def __call__(self, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> jax.Array:
        """Shapes: x [B, T, D], buckets int [T, T], mask bool [B, T] -> [B, T, D]."""
        q, k, v = (
            constrain(rearrange(y, "b t (n h) -> b t n h", n=self.heads), "batch", "seq", "heads", None)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        bias = rearrange(self.relative_attention_bias(buckets), "q k n -> 1 n q k")
        keys = Dense(mask[:, None, None, :])
        out = attention(q, k, v, mask=keys, bias=bias, scale=1.0, precision=self.precision.matmul)
        return self.o(rearrange(out, "b t n h -> b t (n h)"))


class UMT5Block(nnx.Module):
    """Pre-normalised self-attention and gated feed-forward."""

    def __init__(self, cfg: UMT5Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.attention_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, **options)
        self.attention = UMT5Attention(cfg, rngs=rngs)
        self.ffn_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, **options)
        self.ffn = GatedMLP(cfg.d_model, cfg.d_ff, activation="gelu_tanh", **options)

    def __call__(self, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> jax.Array:
        """Shapes: x [B, T, D], buckets int [T, T], mask bool [B, T] -> [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), buckets, mask)
        x = x + self.ffn(self.ffn_norm(x))
        return constrain(x, "batch", "seq", "embed")


class UMT5Encoder(nnx.Module):
    """Encodes token ids; dropout is always off."""

    def __init__(self, cfg: UMT5Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.cfg = cfg
        self.shared = Embed(cfg.vocab_size, cfg.d_model, **options)
        self.blocks = stack.stacked(lambda keys: UMT5Block(cfg, rngs=keys), cfg.num_layers, rngs=rngs)
        self.final_layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, **options)

    @overload
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        *,
        taps: Literal[False] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> jax.Array: ...

    @overload
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        *,
        taps: Literal[True] | tuple[str, ...],
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        *,
        taps: bool | tuple[str, ...] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes sentences; rows where `mask` is False hold numbers without meaning.

        Shapes: ids int [B, T] in 0..vocab_size-1, mask bool [B, T] -> [B, T, D].

        Args:
          taps: names of intermediate results that are returned too, or True for all: "embedding", "block0",
            "block1", ..., each [B, T, D].
          mode, remat: how the blocks run, see `layers.stack.run`; "host_loop" keeps one layer's temporaries.

        Returns:
          The encoded text; with taps the encoded text and {name: array}.

        Raises:
          ValueError: for shapes that differ, a mask that is not boolean, or an unknown tap.
        """
        cfg = self.cfg
        _check_inputs(ids, mask)
        known = ("embedding", *(f"block{layer}" for layer in range(cfg.num_layers)))
        names = known if taps is True else tuple(taps or ())
        if not set(names) <= set(known):
            raise ValueError(f"unknown tap among {', '.join(names)}: choose from {', '.join(known)}")
        embedded = constrain(self.shared(ids), "batch", "seq", "embed")
        kept = tuple(layer for layer in range(cfg.num_layers) if f"block{layer}" in names)
        x, carries = stack.run(
            self.blocks,
            embedded,
            _apply_block,
            position_buckets(cfg, ids.shape[1]),
            mask,
            mode=mode,
            remat=remat,
            taps=kept,
        )
        encoded = self.final_layer_norm(x)
        seen = {"embedding": embedded} | {f"block{layer}": carries[slot] for slot, layer in enumerate(kept)}
        return (encoded, {name: seen[name] for name in names}) if taps else encoded


def position_buckets(cfg: UMT5Config, length: int) -> np.ndarray:
    """Row of the bias table for every query and key, `_relative_position_bucket` of upstream.

    Half of the rows are for keys after the query. In each half the first rows hold one distance each and the
    rest widen logarithmically up to `relative_attention_max_distance`.

    Shapes: -> int32 [T (query), T (key)].
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = cfg.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32 and this order of operations decide, as in torch, on which side of a boundary a distance falls.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(cfg.relative_attention_max_distance / exact)) * np.float32(half - exact)
    wide = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, wide) + half * (offset > 0)).astype(np.int32)


def encode_blockwise(
    cfg: UMT5Config,
    embedding: np.ndarray,
    layer_states: Iterable[Mapping[str, Any]],
    final_norm: np.ndarray,
    ids: np.ndarray,
    mask: np.ndarray,
) -> jax.Array:
    """Encodes sentences with one block's weights in memory at a time.

    The XXL encoder needs 11.4 GB in bfloat16; this needs 0.4 GB at a time, besides what the caller keeps.

    Shapes: embedding [V, D], final_norm [D], ids int [B, T], mask bool [B, T] -> [B, T, D].

    Args:
      embedding: `shared/embedding`; only the rows in `ids` are read, so that a memory map costs nothing.
      layer_states: parameters of block 0, 1, ... as nested dicts (`attention/q/kernel`, ...), taken one by one
        and dropped after use: `layer_states` of an encoder, or `convert.streaming.layer_states` of a file.
      final_norm: `final_layer_norm/scale`.

    Raises:
      ValueError: if the number of layers is not `cfg.num_layers`, or for shapes that differ.
    """
    _check_inputs(ids, mask)
    rows, places = np.unique(np.asarray(ids), return_inverse=True)
    x = cfg.precision.compute(jnp.asarray(np.asarray(embedding[rows]))[places.reshape(ids.shape)])
    buckets = position_buckets(cfg, ids.shape[1])
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: UMT5Block(cfg, rngs=nnx.Rngs(0))))
    count = 0
    for state in layer_states:
        x = _jitted_block(graphdef, state, x, buckets, mask)
        # Without this the loop would run ahead of the device, and all layers would be in memory at once.
        x.block_until_ready()
        del state  # or it would live on while the next one is read
        count += 1
    if count != cfg.num_layers:
        raise ValueError(f"got {count} layers of a UMT5 encoder that has {cfg.num_layers}")
    norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, precision=cfg.precision, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.asarray(final_norm, cfg.precision.param_dtype)
    return norm(x)


def layer_states(encoder: UMT5Encoder) -> Iterator[dict[str, Any]]:
    """Parameters of an encoder's blocks one by one, in the form that `encode_blockwise` takes."""
    state = nnx.to_pure_dict(nnx.state(encoder.blocks))
    for layer in range(encoder.cfg.num_layers):
        yield jax.tree.map(lambda leaf, layer=layer: leaf[layer], state)


def flops(cfg: UMT5Config, tokens: int) -> int:
    """Floating-point operations of a forward pass of one sentence, two for each multiply-add of a matrix product.

    Args:
      tokens: length of the sentence with its padding.
    """
    inner = cfg.num_heads * cfg.d_kv
    block = 4 * tokens * cfg.d_model * inner + 2 * tokens * tokens * inner + 3 * tokens * cfg.d_model * cfg.d_ff
    return 2 * cfg.num_layers * block


def _apply_block(block: UMT5Block, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> jax.Array:
    return block(x, buckets, mask)


@partial(jax.jit, static_argnums=0)
def _jitted_block(graphdef, state, x, buckets, mask):
    return nnx.merge(graphdef, state)(x, buckets, mask)


def _check_inputs(ids: jax.Array | np.ndarray, mask: jax.Array | np.ndarray) -> None:
    if ids.shape != mask.shape or len(ids.shape) != 2:
        raise ValueError(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)} must both be [B, T]")
    if mask.dtype != bool:
        raise ValueError(f"the mask must be boolean, True for tokens, not {mask.dtype}")


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^shared/embedding$", ("vocab", "embed")),
    (r"^blocks/attention/[qkv]/kernel$", ("layers", "embed", "heads")),
    (r"^blocks/attention/o/kernel$", ("layers", "heads", "embed")),
    (r"^blocks/attention/relative_attention_bias/embedding$", ("layers", None, "heads")),
    (r"^blocks/ffn/(gate|up)/kernel$", ("layers", "embed", "mlp")),
    (r"^blocks/ffn/down/kernel$", ("layers", "mlp", "embed")),
    (r"/scale$", ()),
)
