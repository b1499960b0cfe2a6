"""Attention with bounded memory: an online softmax over blocks of keys, and a backward pass that recomputes."""

import functools

import jax
import jax.numpy as jnp

from rvseg_jax.ops.attention import blocks
from rvseg_jax.ops.attention.masks import Mask, pad_to


def chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    precision: str | None,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> jax.Array:
    """Attention whose temporaries grow with the number of tokens and not with its square.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, Hv], bias broadcastable to [B, N, Tq, Tk] -> [B, Tq, N, Hv].

    Args:
      block_q, block_k: largest block of queries and of keys; chosen by size where None. Blocks are evened out,
        so that 1,369 keys make two blocks of 688 and not one of 1,024 and one nearly empty.
    """
    plan = blocks.Plan.of(q, k, scale, precision, block_q, block_k)
    if bias is not None:
        bias = pad_to(pad_to(bias, 2, plan.q_padded), 3, plan.kv_padded)
    out = _attend(plan, *plan.heads_first(q, k, v), bias, mask.padded(plan.q_padded, plan.kv_padded))
    return plan.tokens_first(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: Mask) -> jax.Array:
    """q [B, K, G, Tq, H], k [B, K, Tk, H], v [B, K, Tk, Hv] -> [B, K, G, Tq, Hv], whole blocks only."""
    return _forward(plan, q, k, v, bias, mask)[0]


def _forward(plan: blocks.Plan, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: Mask):
    """The output, and what the backward pass needs: inputs, output and logsumexp [B, K, G, Tq]."""

    def over_rows(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = blocks.nothing_seen(plan, q, v)
        out, lse = blocks.finished(blocks.seen_after(plan, q, k, v, bias, mask, start, before))
        return out.astype(q.dtype), lse

    out, lse = map(blocks.join_rows, jax.lax.map(over_rows, plan.row_starts()))
    return out, (q, k, v, bias, mask, out, lse)


def _backward(plan: blocks.Plan, residuals, d_out: jax.Array):
    """Cotangents of q, k, v and bias; the mask has none."""
    q, k, v, bias, mask, out, lse = residuals
    rows_of = (d_out, lse, blocks.row_means(d_out, out))
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, bias))
    (dk, dv, d_bias), dq = blocks.gradients(plan, q, k, v, bias, mask, rows_of, sums, dq_dtype=q.dtype)
    d_bias = None if d_bias is None else d_bias.astype(bias.dtype)
    return blocks.join_rows(dq), dk.astype(k.dtype), dv.astype(v.dtype), d_bias, None


_attend.defvjp(_forward, _backward)
