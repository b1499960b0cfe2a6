"""The decoder of Qwen2.5 (arXiv 2412.15115), InternLM2 (arXiv 2403.17297) and Qwen2.5-VL's text.

As in `transformers/models/qwen2/modeling_qwen2.py` and InternLM2's `modeling_internlm2.py`: pre-normalised blocks with
grouped heads, rotary positions that turn halves, and a gated feed-forward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import lora, stack
from rvseg_jax.layers.embed import Embed
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import GatedMLP
from rvseg_jax.layers.norm import RMSNorm
from rvseg_jax.layers.rope import rotate_halves
from rvseg_jax.models.lm.cache import KVCache, constrain_buffer, written
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.rotary import Rope, rotary
from rvseg_jax.ops.attention import Causal, Dense, Mask, attention
from rvseg_jax.parallel import constrain


class Buffers(NamedTuple):
    """What passes through the layers: the tokens, and keys and values of all layers."""

    x: jax.Array
    keys: jax.Array
    values: jax.Array


class SelfAttention(nnx.Module):
    """Causal attention in which several query heads read one head of keys and values."""

    def __init__(self, cfg: LanguageModelConfig, *, rngs: nnx.Rngs):
        width, bias = cfg.hidden_size, cfg.attention_bias
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        queries, keys = (count * cfg.head_width for count in (cfg.num_attention_heads, cfg.num_key_value_heads))
        self.q_proj = Linear(width, queries, use_bias=bias, **options)
        self.k_proj = Linear(width, keys, use_bias=bias, **options)
        self.v_proj = Linear(width, keys, use_bias=bias, **options)
        self.o_proj = Linear(queries, width, use_bias=False, **options)
        self.head_width = cfg.head_width
        self.precision = cfg.precision

    def project(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries and keys, and values. Shapes: x [B, T, D] -> [B, T, N, H], [B, T, K, H], [B, T, K, H]."""
        q, k, v = (
            constrain(rearrange(y, "b t (n h) -> b t n h", h=self.head_width), "batch", "seq", heads, None)
            for y, heads in ((self.q_proj(x), "heads"), (self.k_proj(x), "kv_heads"), (self.v_proj(x), "kv_heads"))
        )
        return rotate_halves(q, *rope), rotate_halves(k, *rope), v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        """Shapes: q [B, T, N, H], k and v [B, S, K, H] -> [B, T, D]."""
        # The scores of one token are small whatever the number of keys.
        backend = "reference" if q.shape[1] == 1 else "auto"
        y = attention(q, k, v, mask=mask, precision=self.precision.matmul, backend=backend)
        return self.o_proj(rearrange(y, "b t n h -> b t (n h)"))


class DecoderBlock(nnx.Module):
    """x + attention, then x + feed-forward, each normalised before."""

    def __init__(self, cfg: LanguageModelConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.input_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, **options)
        self.self_attn = SelfAttention(cfg, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, **options)
        self.mlp = GatedMLP(cfg.hidden_size, cfg.intermediate_size, activation="silu", **options)

    def project(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the block's input, as in `SelfAttention.project`."""
        return self.self_attn.project(self.input_layernorm(x), rope)

    def finish(self, x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        """The block's output from its input and what attention reads. Shapes: x [B, T, D] -> [B, T, D]."""
        x = x + self.self_attn.attend(q, k, v, mask)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "seq", "embed")


class LanguageModel(nnx.Module):
    """Embeddings of tokens (or of anything else) in, states of the last layer out."""

    def __init__(self, cfg: LanguageModelConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.cfg = cfg
        self.embed_tokens = Embed(cfg.vocab_size, cfg.hidden_size, **options)
        self.layers = stack.stacked(lambda keys: DecoderBlock(cfg, rngs=keys), cfg.num_hidden_layers, rngs=rngs)
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, **options)
        tied = cfg.tie_word_embeddings
        self.lm_head = None if tied else Linear(cfg.hidden_size, cfg.vocab_size, use_bias=False, **options)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Embeddings of tokens. Shapes: ids int [B, T] in 0..vocab_size-1 -> [B, T, D]."""
        return constrain(self.embed_tokens(ids), "batch", "seq", "embed")

    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array | None = None,
        valid: jax.Array | None = None,
        cache: KVCache | None = None,
        remat: stack.Remat = "none",
        mode: stack.Mode = "scan",
        taps: Sequence[int] = (),
    ) -> Any:
        """States of the last layer, normalised.

        Padding stands behind a row's tokens, where the causal mask alone keeps it from them; states of padding hold
        numbers without meaning.

        Shapes: x [B, T, D], positions int [B, T] or [3, B, T], valid bool [B, T] -> [B, T, D].

        Args:
          x: embeddings.
          positions: 0..T-1 for every row by default, or what follows the cache; three rows (time, height, width) with
            `mrope_section`.
          valid: True for tokens, False for the padding behind them.
          cache: tokens before these; there must be T free slots.
          remat, mode: how the layers run, see `layers.stack.run`.
          taps: layers whose outputs are returned too, in ascending order; not with a cache.

        Returns:
          (states, the cache with these tokens or None), and with taps (states, None, outputs [len(taps), B, T, D]).

        Raises:
          ValueError: for shapes that do not fit, padding in front of tokens, or taps with a cache.
        """
        _check(x, valid)
        x = constrain(self.cfg.precision.compute(x), "batch", "seq", "embed")
        if cache is None:
            rope = rotary(self.cfg, _places(x) if positions is None else positions)
            x, kept = stack.run(self.layers, x, _apply, rope, mode=mode, remat=remat, taps=taps)
            return (self.norm(x), None, kept) if len(taps) else (self.norm(x), None)
        if len(taps):
            raise ValueError("taps are kept without a cache only: leave out one of the two")
        if x.shape[1] > cache.size:
            raise ValueError(f"{x.shape[1]} tokens do not fit a cache of {cache.size} slots: make it larger")
        positions = cache.next_position[:, None] + _places(x) if positions is None else positions
        noted = cache.noted(_all_valid(x) if valid is None else valid, positions)
        carry = Buffers(x, cache.keys, cache.values)
        shared = (rotary(self.cfg, positions), noted.valid, cache.filled)
        return self._through_buffers(carry, noted, _apply_with_cache, shared, mode, remat)

    def prefill(
        self,
        x: jax.Array,
        size: int,
        *,
        positions: jax.Array | None = None,
        valid: jax.Array | None = None,
        mode: stack.Mode = "scan",
    ) -> tuple[jax.Array, KVCache]:
        """The same as a call with an empty cache of `size` slots, without attending to its free slots.

        Shapes: as for a call; `size` at least T.
        """
        _check(x, valid)
        if x.shape[1] > size:
            raise ValueError(f"{x.shape[1]} tokens do not fit a cache of {size} slots: make it larger")
        x = constrain(self.cfg.precision.compute(x), "batch", "seq", "embed")
        positions = _places(x) if positions is None else positions
        cache = KVCache.empty(self.cfg, x.shape[0], size)
        noted = cache.noted(_all_valid(x) if valid is None else valid, positions)
        carry = Buffers(x, cache.keys, cache.values)
        return self._through_buffers(carry, noted, _apply_and_keep, (rotary(self.cfg, positions),), mode, "none")

    def _through_buffers(self, carry, noted, apply, shared, mode, remat):
        layers = jnp.arange(self.cfg.num_hidden_layers)
        carry, _ = stack.run(self.layers, carry, apply, *shared, per_layer=layers, mode=mode, remat=remat)
        cache = KVCache(
            constrain_buffer(carry.keys),
            constrain_buffer(carry.values),
            noted.valid,
            noted.filled,
            noted.next_position,
        )
        return self.norm(carry.x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of the next token. Shapes: hidden [..., D], normalised -> float32 [..., V]."""
        if self.lm_head is None:
            scores = self.embed_tokens.attend(hidden)
        else:
            scores = self.lm_head(hidden, dtype=jnp.float32)
        return constrain(scores, "batch", *("seq",) * (hidden.ndim - 2), "vocab")


def _apply(block: DecoderBlock, x: jax.Array, rope: Rope) -> jax.Array:
    return block.finish(x, *block.project(x, rope), Causal())


def _apply_and_keep(block: DecoderBlock, carry: Buffers, layer: jax.Array, rope: Rope) -> Buffers:
    """A layer of the first tokens of a cache: they attend to each other and fill the first slots."""
    q, k, v = block.project(carry.x, rope)
    keys, values = written(carry.keys, k, layer, 0), written(carry.values, v, layer, 0)
    return Buffers(block.finish(carry.x, q, k, v, Causal()), keys, values)


def _apply_with_cache(
    block: DecoderBlock, carry: Buffers, layer: jax.Array, rope: Rope, valid: jax.Array, filled: jax.Array
) -> Buffers:
    q, k, v = block.project(carry.x, rope)
    keys, values = written(carry.keys, k, layer, filled), written(carry.values, v, layer, filled)
    k, v = (jax.lax.dynamic_index_in_dim(buffer, layer, keepdims=False) for buffer in (keys, values))
    mask = Causal(filled) & Dense(valid[:, None, None, :])
    return Buffers(block.finish(carry.x, q, k.astype(q.dtype), v.astype(q.dtype), mask), keys, values)


def _places(x: jax.Array) -> jax.Array:
    """Positions 0..T-1 of every row. Shapes: x [B, T, D] -> int32 [B, T]."""
    return jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])


def _all_valid(x: jax.Array) -> jax.Array:
    return jnp.ones(x.shape[:2], bool)


def _check(x: jax.Array, valid: jax.Array | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"the embeddings have shape {x.shape}: give [B, T, D]")
    if valid is None:
        return
    if valid.shape != x.shape[:2] or valid.dtype != bool:
        raise ValueError(f"valid is {valid.dtype} {valid.shape}: give bool {x.shape[:2]}, True for tokens")
    if not isinstance(valid, jax.core.Tracer) and not padded_behind(np.asarray(valid)):
        raise ValueError("valid has padding in front of a token: move the padding of each row behind its tokens")


def padded_behind(valid: np.ndarray) -> bool:
    """Whether all padding stands behind the tokens of its row. Shapes: valid bool [B, T]."""
    return bool(np.all(valid[:, :-1] >= valid[:, 1:]))


# Logical axes of the parameters and of their adapters; the first pattern that is found in a path counts, and () keeps a
# leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = lora.sharding(
    (
        (r"^embed_tokens/embedding$", ("vocab", "embed")),
        (r"^layers/self_attn/q_proj/kernel$", ("layers", "embed", "heads")),
        (r"^layers/self_attn/q_proj/bias$", ("layers", "heads")),
        (r"^layers/self_attn/[kv]_proj/kernel$", ("layers", "embed", "kv_heads")),
        (r"^layers/self_attn/[kv]_proj/bias$", ("layers", "kv_heads")),
        (r"^layers/self_attn/o_proj/kernel$", ("layers", "heads", "embed")),
        (r"^layers/mlp/(gate|up)/kernel$", ("layers", "embed", "mlp")),
        (r"^layers/mlp/down/kernel$", ("layers", "mlp", "embed")),
        (r"^lm_head/kernel$", ("embed", "vocab")),
        (r"/scale$", ()),
    )
)
