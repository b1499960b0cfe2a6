"""The arithmetic of one block of scores: an online softmax forward, recomputed weights backward.

Only one [B, N, block_q, block_k] block of scores exists at a time. The forward pass keeps the log of each
row's softmax sum; the backward pass makes the weights again from it, block by block (Dao et al., 2022,
"FlashAttention", algorithms 1 and 4; Rabe and Staats, 2021, "Self-attention does not need O(n^2) memory").
Heads come before tokens here, so that every block is a plain slice for a matrix product.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from rvseg_jax.ops.attention.masks import Mask, Span, pad_to
from rvseg_jax.parallel.mesh import platform

# Bounds on one block of float32 scores, of which a step holds about five. CPUs want blocks that stay in their cache;
# accelerators need them so that their matrix units outweigh the start of each kernel.
_BLOCK_K = 1024
_MAX_BLOCK_Q = 1024
_BLOCK_BYTES = {"cpu": 2 * 2**20, "gpu": 128 * 2**20, "tpu": 32 * 2**20}

Softmax = tuple[jax.Array, jax.Array, jax.Array]
"""Of rows, over the keys seen so far: peak and sum of weights [..., Tq], weighted sum of values [..., Tq, Hv]."""


class Origin(NamedTuple):
    """Where the first query and the first key lie in the whole sequences, of which a device may hold a part."""

    row: jax.Array | int = 0
    column: jax.Array | int = 0


WHOLE = Origin()


@dataclass(frozen=True)
class Plan:
    """Everything about a call that is known when it is traced; lengths are those of the part at hand."""

    scale: float
    precision: str | None
    block_q: int
    block_k: int
    q_len: int
    kv_len: int

    @classmethod
    def of(
        cls,
        q: jax.Array,
        k: jax.Array,
        scale: float,
        precision: str | None,
        block_q: int | None = None,
        block_k: int | None = None,
    ) -> "Plan":
        """The plan for q [B, Tq, N, H] and k [B, Tk, K, H], with blocks of at most these sizes, or chosen by memory."""
        (batch, q_len, heads, _), kv_len = q.shape, k.shape[1]
        block_k = _even_block(kv_len, block_k or _BLOCK_K)
        # Sizes here are those of all automatic devices; each of them holds about its share.
        share = max(batch * heads // _automatic_devices(), 1)
        fitting = _BLOCK_BYTES[platform()] // (4 * share * block_k)
        block_q = _even_block(q_len, block_q or min(max(fitting, 64), _MAX_BLOCK_Q))
        return cls(scale, precision, block_q, block_k, q_len, kv_len)

    @property
    def q_padded(self) -> int:
        """Length of whole blocks of queries."""
        return math.ceil(self.q_len / self.block_q) * self.block_q

    @property
    def kv_padded(self) -> int:
        """Length of whole blocks of keys."""
        return math.ceil(self.kv_len / self.block_k) * self.block_k

    def heads_first(self, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Padded to whole blocks: q [B, K, G, Tq, H], k [B, K, Tk, H], v [B, K, Tk, Hv]."""
        k, v = (pad_to(x, 1, self.kv_padded).transpose(0, 2, 1, 3) for x in (k, v))
        return self.rows_first(q, k.shape[1]), k, v

    def rows_first(self, x: jax.Array, kv_heads: int) -> jax.Array:
        """[B, Tq, N, H] -> [B, K, G, Tq, H], padded to whole blocks."""
        x = pad_to(x, 1, self.q_padded)
        return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)

    def tokens_first(self, x: jax.Array) -> jax.Array:
        """The inverse of `rows_first`, without padding."""
        x = x.transpose(0, 3, 1, 2, 4)
        return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, : self.q_len]

    def row_starts(self) -> jax.Array:
        """Where the blocks of queries begin, int32 [blocks]."""
        return jnp.arange(0, self.q_padded, self.block_q, dtype=jnp.int32)

    def column_starts(self) -> jax.Array:
        """Where the blocks of keys begin, int32 [blocks]."""
        return jnp.arange(0, self.kv_padded, self.block_k, dtype=jnp.int32)


def nothing_seen(plan: Plan, q: jax.Array, v: jax.Array) -> Softmax:
    """State of one block of rows before its first key; q and v as in `seen_after`."""
    lead = (*q.shape[:3], plan.block_q)
    return (
        jnp.full(lead, -jnp.inf, jnp.float32),
        jnp.zeros(lead, jnp.float32),
        jnp.zeros((*lead, v.shape[-1]), jnp.float32),
    )


def seen_after(
    plan: Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: Mask,
    start: jax.Array,
    before: Softmax,
    origin: Origin = WHOLE,
) -> Softmax:
    """State of the block of rows at `start` after it has seen these keys too.

    Shapes:
      q [B, K, G, Tq, H], k [B, K, Tk, H], v [B, K, Tk, Hv], bias broadcastable to [B, N, Tq, Tk], whole blocks.
    """
    rows = Span(start, plan.block_q)
    q_block = rows.of(q, 3)

    def over_columns(carry: Softmax, start: jax.Array) -> tuple[Softmax, None]:
        columns = Span(start, plan.block_k)

        def attend(carry: Softmax) -> Softmax:
            scores = _scores(plan, q_block, columns.of(k, 2), bias, mask, rows, columns, origin)
            return _online_softmax(plan, carry, scores, columns.of(v, 2))

        return _unless_empty(mask, rows, columns, origin, attend, lambda carry: carry, carry), None

    return jax.lax.scan(over_columns, before, plan.column_starts())[0]


def finished(state: Softmax) -> tuple[jax.Array, jax.Array]:
    """Output [..., Tq, Hv] and logsumexp [..., Tq] of rows that have seen all keys, float32."""
    peak, total, acc = state
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    # +inf makes the recomputed weights of a row that sees nothing exp(-inf) = 0.
    return acc / total[..., None], jnp.where(seen, peak + jnp.log(total), jnp.inf)


def gradients(
    plan: Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: Mask,
    rows_of: tuple[jax.Array, jax.Array, jax.Array],
    sums: tuple[jax.Array, jax.Array, jax.Array | None],
    origin: Origin = WHOLE,
    dq_dtype: Any = jnp.float32,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """What these keys and all rows add to the cotangents.

    Args:
      q, k, v, bias, mask, origin: as for `seen_after`.
      rows_of: cotangent of the output [B, K, G, Tq, Hv], logsumexp and `row_means` [B, K, G, Tq].
      sums: float32 cotangents of k, v and bias so far.
      dq_dtype: format in which the cotangent of q leaves its float32 sum.

    Returns:
      (sums with this part added, cotangent of q [blocks, B, K, G, block_q, H]).
    """

    def over_rows(sums, start: jax.Array):
        rows = Span(start, plan.block_q)
        row_blocks = tuple(rows.of(x, 3) for x in (q, *rows_of))

        def over_columns(carry, start):
            columns = Span(start, plan.block_k)

            def of_block(_):
                k_block, v_block = columns.of(k, 2), columns.of(v, 2)
                scores = _scores(plan, row_blocks[0], k_block, bias, mask, rows, columns, origin)
                return _block_gradients(plan, row_blocks, k_block, v_block, bias, scores)

            # The sums stay outside of the branch: a conditional copies what it returns.
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_block, None))
            dq, dk, dv, d_bias = _unless_empty(mask, rows, columns, origin, of_block, lambda _: zeros, None)
            dq_sum, dk_sum, dv_sum, d_bias_sum = carry
            dk_sum = _add_at(dk_sum, dk, {2: columns.start})
            dv_sum = _add_at(dv_sum, dv, {2: columns.start})
            if bias is not None:
                d_bias_sum = _add_at(d_bias_sum, d_bias, {2: rows.start, 3: columns.start})
            return (dq_sum + dq, dk_sum, dv_sum, d_bias_sum), None

        carry = (jnp.zeros(row_blocks[0].shape, jnp.float32), *sums)
        (dq, *sums), _ = jax.lax.scan(over_columns, carry, plan.column_starts())
        return tuple(sums), dq.astype(dq_dtype)

    return jax.lax.scan(over_rows, sums, plan.row_starts())


def row_means(d_out: jax.Array, out: jax.Array) -> jax.Array:
    """<d_out, out> of every row: the weighted mean of the weights' cotangent, which softmax's derivative subtracts."""
    return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)


def join_rows(blocks: jax.Array) -> jax.Array:
    """[blocks, B, K, G, block_q, ...] -> [B, K, G, Tq, ...]."""
    joined = jnp.moveaxis(blocks, 0, 3)
    return joined.reshape(*joined.shape[:3], -1, *joined.shape[5:])


def _automatic_devices() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind == AxisType.Auto)


def _even_block(length: int, limit: int) -> int:
    """The block size that cuts `length` into the fewest blocks of at most about `limit`, all alike."""
    size = math.ceil(length / math.ceil(length / limit))
    return min(length, math.ceil(size / 8) * 8)


def _online_softmax(plan: Plan, carry: Softmax, scores: jax.Array, v_block: jax.Array) -> Softmax:
    """State of the rows after one more block of keys."""
    peak, total, acc = carry
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    # While a row has seen nothing its peak is -inf, and -inf - -inf would be NaN.
    shift = jnp.where(jnp.isfinite(new_peak), new_peak, 0.0)
    weights = jnp.exp(scores - shift[..., None])
    decay = jnp.exp(peak - shift)
    update = _product(plan, "bkgqt,bkth->bkgqh", weights.astype(v_block.dtype), v_block)
    return new_peak, total * decay + jnp.sum(weights, axis=-1), acc * decay[..., None] + update


def _block_gradients(plan: Plan, row_blocks, k_block: jax.Array, v_block: jax.Array, bias, scores: jax.Array):
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
    plan: Plan,
    q_block: jax.Array,
    k_block: jax.Array,
    bias: jax.Array | None,
    mask: Mask,
    rows: Span,
    columns: Span,
    origin: Origin,
) -> jax.Array:
    """Scaled, biased and masked scores of one block, float32 [B, K, G, block_q, block_k]."""
    scores = _product(plan, "bkgqh,bkth->bkgqt", q_block, k_block) * plan.scale
    grouped = scores.shape
    scores = scores.reshape(grouped[0], -1, plan.block_q, plan.block_k)
    if bias is not None:
        scores = scores + columns.of(rows.of(bias, 2), 3).astype(jnp.float32)
    keep = mask.keep(rows.moved(origin.row), columns.moved(origin.column))
    if plan.kv_padded > plan.kv_len:
        inside = columns.positions() < plan.kv_len
        keep = inside if keep is None else keep & inside
    if keep is not None:
        scores = jnp.where(keep, scores, -jnp.inf)
    return scores.reshape(grouped)


def _product(plan: Plan, equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=plan.precision, preferred_element_type=jnp.float32)


def _unless_empty(mask: Mask, rows: Span, columns: Span, origin: Origin, compute: Callable, skip: Callable, operand):
    """`compute(operand)`, or `skip(operand)` where the mask knows the block to be empty."""
    touched = mask.touches(rows.moved(origin.row), columns.moved(origin.column))
    if touched is None:
        return compute(operand)
    return jax.lax.cond(touched, compute, skip, operand)


def _add_at(total: jax.Array, block: jax.Array, starts: dict[int, jax.Array | int]) -> jax.Array:
    """`total` with `block` added from `starts` (axis: position) on; an axis of length 1 has no other place than 0."""
    index = [starts.get(axis, 0) if size > 1 else 0 for axis, size in enumerate(total.shape)]
    old = jax.lax.dynamic_slice(total, index, block.shape)
    return jax.lax.dynamic_update_slice(total, old + block, index)
