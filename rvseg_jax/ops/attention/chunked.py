"""Attention with bounded memory: an online softmax over blocks of keys, and a backward pass that recomputes.

Only one [B, N, block_q, block_k] block of scores exists at a time. The forward pass keeps the log of each
row's softmax sum; the backward pass makes the weights again from it, block by block (Dao et al., 2022,
"FlashAttention", algorithms 1 and 4; Rabe and Staats, 2021, "Self-attention does not need O(n^2) memory").
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rvseg_jax.ops.attention.masks import Mask, Span, pad_to
from rvseg_jax.parallel.mesh import platform

# Bounds on one block of float32 scores, of which a step holds about five. CPUs want blocks that stay in their cache;
# accelerators need them so that their matrix units outweigh the start of each kernel.
_BLOCK_K = 1024
_MAX_BLOCK_Q = 1024
_BLOCK_BYTES = {"cpu": 2 * 2**20, "gpu": 128 * 2**20, "tpu": 32 * 2**20}


@dataclass(frozen=True)
class _Plan:
    """Everything about a call that is known when it is traced."""

    scale: float
    precision: str | None
    block_q: int
    block_k: int
    kv_len: int
    kv_padding: int


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
    batch, q_len, heads, width = q.shape
    kv_len, kv_heads = k.shape[1:3]
    groups = heads // kv_heads
    block_k = _even_block(kv_len, block_k or _BLOCK_K)
    # Sizes here are those of the whole mesh; each device holds about its share of them.
    share = max(batch * heads // max(jax.sharding.get_abstract_mesh().size, 1), 1)
    fitting = _BLOCK_BYTES[platform()] // (4 * share * block_k)
    block_q = _even_block(q_len, block_q or min(max(fitting, 64), _MAX_BLOCK_Q))
    q_pad, kv_pad = math.ceil(q_len / block_q) * block_q, math.ceil(kv_len / block_k) * block_k
    plan = _Plan(scale, precision, block_q, block_k, kv_len, kv_pad - kv_len)

    # Heads go before tokens once, here, so that each block below is a plain slice for a matrix product.
    q = pad_to(q, 1, q_pad).reshape(batch, q_pad, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    k, v = (pad_to(x, 1, kv_pad).transpose(0, 2, 1, 3) for x in (k, v))
    if bias is not None:
        bias = pad_to(pad_to(bias, 2, q_pad), 3, kv_pad)
    out = _attend(plan, q, k, v, bias, mask.padded(q_pad, kv_pad))
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, q_pad, heads, v.shape[-1])
    return out[:, :q_len]


def _even_block(length: int, limit: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most about `limit`, all alike."""
    size = math.ceil(length / math.ceil(length / limit))
    return min(length, math.ceil(size / 8) * 8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: Mask) -> jax.Array:
    """q [B, K, G, Tq, H], k [B, K, Tk, H], v [B, K, Tk, Hv] -> [B, K, G, Tq, Hv], whole blocks only."""
    return _forward(plan, q, k, v, bias, mask)[0]


def _forward(plan: _Plan, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: Mask):
    """The output, and what the backward pass needs: inputs, output and logsumexp [B, K, G, Tq]."""
    q_len = q.shape[3]

    def over_rows(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = Span(start, plan.block_q)
        q_block = rows.of(q, 3)

        def over_columns(carry, start):
            columns = Span(start, plan.block_k)

            def attend(carry):
                scores = _scores(plan, q_block, columns.of(k, 2), bias, mask, rows, columns)
                return _online_softmax(plan, carry, scores, columns.of(v, 2))

            return _unless_empty(mask, rows, columns, attend, lambda carry: carry, carry), None

        lead = q_block.shape[:-1]
        empty = (
            jnp.full(lead, -jnp.inf, jnp.float32),
            jnp.zeros(lead, jnp.float32),
            jnp.zeros((*lead, v.shape[-1]), jnp.float32),
        )
        (peak, total, acc), _ = jax.lax.scan(over_columns, empty, _starts(k.shape[2], plan.block_k))
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        # +inf makes the recomputed weights of a row that sees nothing exp(-inf) = 0.
        lse = jnp.where(seen, peak + jnp.log(total), jnp.inf)
        return (acc / total[..., None]).astype(q.dtype), lse

    out, lse = jax.lax.map(over_rows, _starts(q_len, plan.block_q))
    out, lse = _join_rows(out), _join_rows(lse)
    return out, (q, k, v, bias, mask, out, lse)


def _online_softmax(plan: _Plan, carry, scores: jax.Array, v_block: jax.Array):
    """(peak, sum of weights, weighted sum of values) of the rows after one more block of keys."""
    peak, total, acc = carry
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    # While a row has seen nothing its peak is -inf, and -inf - -inf would be NaN.
    shift = jnp.where(jnp.isfinite(new_peak), new_peak, 0.0)
    weights = jnp.exp(scores - shift[..., None])
    decay = jnp.exp(peak - shift)
    update = _product(plan, "bkgqt,bkth->bkgqh", weights.astype(v_block.dtype), v_block)
    return new_peak, total * decay + jnp.sum(weights, axis=-1), acc * decay[..., None] + update


def _backward(plan: _Plan, residuals, d_out: jax.Array):
    """Cotangents of q, k, v and bias; the mask has none."""
    q, k, v, bias, mask, out, lse = residuals
    # The derivative of softmax subtracts the weighted mean of the weights' cotangent, which is <d_out, out>.
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def over_rows(sums, start: jax.Array):
        rows = Span(start, plan.block_q)
        row_blocks = tuple(rows.of(x, 3) for x in (q, d_out, lse, mean))

        def over_columns(carry, start):
            columns = Span(start, plan.block_k)

            def gradients(_):
                k_block, v_block = columns.of(k, 2), columns.of(v, 2)
                scores = _scores(plan, row_blocks[0], k_block, bias, mask, rows, columns)
                return _block_gradients(plan, row_blocks, k_block, v_block, bias, scores)

            # The sums stay outside of the branch: a conditional copies what it returns.
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, None))
            dq, dk, dv, d_bias = _unless_empty(mask, rows, columns, gradients, lambda _: zeros, None)
            dq_sum, dk_sum, dv_sum, d_bias_sum = carry
            dk_sum = _add_at(dk_sum, dk, {2: columns.start})
            dv_sum = _add_at(dv_sum, dv, {2: columns.start})
            if bias is not None:
                d_bias_sum = _add_at(d_bias_sum, d_bias, {2: rows.start, 3: columns.start})
            return (dq_sum + dq, dk_sum, dv_sum, d_bias_sum), None

        carry = (jnp.zeros(row_blocks[0].shape, jnp.float32), *sums)
        (dq, *sums), _ = jax.lax.scan(over_columns, carry, _starts(k.shape[2], plan.block_k))
        return tuple(sums), dq.astype(q.dtype)

    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, bias))
    (dk, dv, d_bias), dq = jax.lax.scan(over_rows, sums, _starts(q.shape[3], plan.block_q))
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return _join_rows(dq), dk.astype(k.dtype), dv.astype(v.dtype), d_bias, None


_attend.defvjp(_forward, _backward)


def _block_gradients(plan: _Plan, row_blocks, k_block: jax.Array, v_block: jax.Array, bias, scores: jax.Array):
    """What one block of scores adds to the cotangents of q, k, v and bias, in float32."""
    q_block, d_out, lse, mean = row_blocks
    weights = jnp.exp(scores - lse[..., None])
    d_weights = _product(plan, "bkgqh,bkth->bkgqt", d_out, v_block)
    d_scores = weights * (d_weights - mean[..., None])
    dv = _product(plan, "bkgqt,bkgqh->bkth", weights.astype(v_block.dtype), d_out)
    d_dot = (d_scores * plan.scale).astype(q_block.dtype)
    dq = _product(plan, "bkgqt,bkth->bkgqh", d_dot, k_block)
    dk = _product(plan, "bkgqt,bkgqh->bkth", d_dot, q_block)
    if bias is None:
        return dq, dk, dv, None
    batch, kv_heads, groups = scores.shape[:3]
    d_bias = d_scores.reshape(batch, kv_heads * groups, plan.block_q, plan.block_k)
    broadcast = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
    return dq, dk, dv, jnp.sum(d_bias, axis=broadcast, keepdims=True)


def _scores(
    plan: _Plan, q_block: jax.Array, k_block: jax.Array, bias: jax.Array | None, mask: Mask, rows: Span, columns: Span
) -> jax.Array:
    """Scaled, biased and masked scores of one block, float32 [B, K, G, block_q, block_k]."""
    scores = _product(plan, "bkgqh,bkth->bkgqt", q_block, k_block) * plan.scale
    grouped = scores.shape
    scores = scores.reshape(grouped[0], -1, plan.block_q, plan.block_k)
    if bias is not None:
        scores = scores + columns.of(rows.of(bias, 2), 3).astype(jnp.float32)
    keep = mask.keep(rows, columns)
    if plan.kv_padding:
        inside = columns.positions() < plan.kv_len
        keep = inside if keep is None else keep & inside
    if keep is not None:
        scores = jnp.where(keep, scores, -jnp.inf)
    return scores.reshape(grouped)


def _product(plan: _Plan, equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=plan.precision, preferred_element_type=jnp.float32)


def _starts(length: int, block: int) -> jax.Array:
    return jnp.arange(0, length, block, dtype=jnp.int32)


def _join_rows(blocks: jax.Array) -> jax.Array:
    """[blocks, B, K, G, block_q, ...] -> [B, K, G, Tq, ...]."""
    joined = jnp.moveaxis(blocks, 0, 3)
    return joined.reshape(*joined.shape[:3], -1, *joined.shape[5:])


def _unless_empty(mask: Mask, rows: Span, columns: Span, compute: Callable, skip: Callable, operand):
    """`compute(operand)`, or `skip(operand)` where the mask knows the block to be empty."""
    touched = mask.touches(rows, columns)
    if touched is None:
        return compute(operand)
    return jax.lax.cond(touched, compute, skip, operand)


def _add_at(total: jax.Array, block: jax.Array, starts: dict[int, jax.Array | int]) -> jax.Array:
    """`total` with `block` added from `starts` (axis: position) on; an axis of length 1 has no other place than 0."""
    index = [starts.get(axis, 0) if size > 1 else 0 for axis, size in enumerate(total.shape)]
    old = jax.lax.dynamic_slice(total, index, block.shape)
    return jax.lax.dynamic_update_slice(total, old + block, index)
