"""Attention as it is written on paper: the whole score array, softmax in float32."""

import jax
import jax.numpy as jnp

from rvseg_jax.ops.attention.masks import Mask, Span


def reference(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None, scale: float, precision: str | None
) -> jax.Array:
    """Attention with all scores in memory at once, differentiated by JAX.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, Hv], bias broadcastable to [B, N, Tq, Tk] -> [B, Tq, N, Hv].
    """
    batch, q_len, heads, width = q.shape
    kv_len, kv_heads = k.shape[1:3]
    grouped = (batch, kv_heads, heads // kv_heads, q_len, kv_len)
    # Heads before tokens: XLA's CPU matrix products are several times slower over interleaved heads.
    q_heads = q.reshape(batch, q_len, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)
    k_heads, v_heads = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkgqh,bkth->bkgqt", q_heads, k_heads, precision=precision, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, q_len, kv_len) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    keep = mask.keep(Span(0, q_len), Span(0, kv_len))
    if keep is not None:
        scores = jnp.where(keep, scores, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0.0)).reshape(grouped)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "bkgqt,bkth->bkgqh", weights.astype(v.dtype), v_heads, precision=precision, preferred_element_type=jnp.float32
    )
    # A query that sees nothing has a total of zero, and gives zeros.
    out = out / jnp.where(total > 0, total, 1.0)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, q_len, heads, v.shape[-1]).astype(q.dtype)
