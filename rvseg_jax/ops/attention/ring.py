"""Attention over tokens that are cut among devices: keys and values travel around the ring of a mesh axis.

Each device keeps its queries and sees one part of the keys after the other, with the block arithmetic of
`blocks` (Liu et al., 2023, "Ring attention with blockwise transformers for near-infinite context"). Backward,
the cotangents of a part of the keys travel with it and are complete when it is home again.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rvseg_jax.ops.attention import blocks
from rvseg_jax.ops.attention.masks import Mask
from rvseg_jax.ops.attention.shards import KV, Q, layout, on_shards, seq_axis

_LSE = ("batch", "heads", None, "queries")


@dataclass(frozen=True)
class _Ring:
    """What is known of a call when it is traced."""

    axis: str
    parts: int
    scale: float
    precision: str | None
    block_q: int | None
    block_k: int | None

    def plan(self, q: jax.Array, k: jax.Array) -> blocks.Plan:
        """The plan for one device's part of q and k."""
        return blocks.Plan.of(q, k, self.scale, self.precision, self.block_q, self.block_k)

    def next(self, tree: Any) -> Any:
        """Hands this device's arrays to the next one and returns those of the one before."""
        return jax.lax.ppermute(tree, self.axis, [(i, (i + 1) % self.parts) for i in range(self.parts)])

    def origin(self, turn: jax.Array, plan: blocks.Plan) -> blocks.Origin:
        """Where this device's queries, and the keys that it holds after `turn` turns, lie in the whole."""
        index = jax.lax.axis_index(self.axis)
        return blocks.Origin(index * plan.q_len, (index - turn) % self.parts * plan.kv_len)


def ring(
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
    """Attention over the `seq` axis of the mesh in use, which must divide both lengths.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, Hv] -> [B, Tq, N, Hv]; bias must be None.

    Args:
      block_q, block_k: as for `chunked`, within one device's part.
    """
    del bias
    axis, parts = seq_axis()
    return _attend(_Ring(axis, parts, scale, precision, block_q, block_k), q, k, v, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(of: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    return _forward(of, q, k, v, mask)[0]


def _forward(of: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask):
    axes = layout(q, k, queries=True, keys=True)
    local = functools.partial(_local_forward, of)
    arrays, names = (q, k, v, mask), (Q, KV, KV, _mask_names(mask, len(q)))
    out, lse = on_shards(local, arrays, names, (Q, _LSE), axes)
    return out, (q, k, v, mask, out, lse)


def _backward(of: _Ring, residuals, d_out: jax.Array):
    q, k, v, mask, out, lse = residuals
    axes = layout(q, k, queries=True, keys=True)
    local = functools.partial(_local_backward, of)
    arrays, names = (q, k, v, mask, out, lse, d_out), (Q, KV, KV, _mask_names(mask, len(q)), Q, _LSE, Q)
    return *on_shards(local, arrays, names, (Q, KV, KV), axes), None


_attend.defvjp(_forward, _backward)


def _local_forward(of: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """This device's output [B, Tq, N, Hv] and logsumexp [B, K, G, padded Tq]."""
    plan = of.plan(q, k)
    mask = _covering(mask, plan, of.parts)
    q, k, v = plan.heads_first(q, k, v)
    starts = plan.row_starts()

    def turn(carry, index):
        state, k, v = carry
        others = of.next((k, v))  # travels while this part is computed with
        origin = of.origin(index, plan)

        def over_rows(block):
            start, before = block
            return blocks.seen_after(plan, q, k, v, None, mask, start, before, origin)

        return (jax.lax.map(over_rows, (starts, state)), *others), None

    nothing = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(starts), *x.shape)), blocks.nothing_seen(plan, q, v))
    (state, _, _), _ = jax.lax.scan(turn, (nothing, k, v), jnp.arange(of.parts))
    out, lse = map(blocks.join_rows, blocks.finished(state))
    return plan.tokens_first(out).astype(q.dtype), lse


def _local_backward(of: _Ring, q, k, v, mask: Mask, out, lse, d_out) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of this device's q, k and v."""
    plan = of.plan(q, k)
    mask = _covering(mask, plan, of.parts)
    kv_len, kv_heads, formats = plan.kv_len, k.shape[2], (q.dtype, k.dtype, v.dtype)
    out, d_out = (plan.rows_first(x, kv_heads) for x in (out, d_out))
    q, k, v = plan.heads_first(q, k, v)
    rows_of = (d_out, lse, blocks.row_means(d_out, out))

    def turn(carry, index):
        dq, k, v, *sums = carry
        others = of.next((k, v))
        origin = of.origin(index, plan)
        (dk, dv, _), more = blocks.gradients(plan, q, k, v, None, mask, rows_of, (*sums, None), origin)
        return (dq + blocks.join_rows(more), *others, *of.next((dk, dv))), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    (dq, _, _, dk, dv), _ = jax.lax.scan(turn, (zeros[0], k, v, *zeros[1:]), jnp.arange(of.parts))
    dk, dv = (x.transpose(0, 2, 1, 3)[:, :kv_len] for x in (dk, dv))
    found = (plan.tokens_first(dq), dk, dv)
    return tuple(x.astype(dtype) for x, dtype in zip(found, formats, strict=True))


def _covering(mask: Mask, plan: blocks.Plan, parts: int) -> Mask:
    """The mask with its arrays reaching over the padding of the last part's blocks."""
    tail_q, tail_kv = plan.q_padded - plan.q_len, plan.kv_padded - plan.kv_len
    return mask.padded(parts * plan.q_len + tail_q, parts * plan.kv_len + tail_kv)


def _mask_names(mask: Mask, batch: int) -> Any:
    """Names of the dimensions of a mask's arrays: samples are cut like those of q, positions are not."""

    def names(leaf: Any) -> tuple[str | None, ...]:
        shape = jnp.shape(leaf)
        return tuple("batch" if axis == 0 and size == batch else None for axis, size in enumerate(shape))

    return jax.tree.map(names, mask)
