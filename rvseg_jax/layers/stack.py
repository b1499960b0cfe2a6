"""Runs of equal blocks whose parameters are stacked on a leading layer axis."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Carry = TypeVar("Carry")
Mode = Literal["scan", "unroll", "host_loop"]
Remat = Literal["none", "full", "dots"]

REMAT_POLICIES: dict[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stacked(make_block: Callable[[nnx.Rngs], nnx.Module], length: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """`length` blocks in one module: every parameter has a leading axis [L].

    The module has the attributes, and so the parameter paths, of one block. It is no block that can be called:
    give it to `run`.
    """
    template = nnx.eval_shape(lambda: make_block(nnx.Rngs(params=0)))
    keys = jax.random.split(rngs.params(), length)
    states = jax.vmap(lambda key: nnx.state(make_block(nnx.Rngs(params=key))))(keys)
    return nnx.merge(nnx.graphdef(template), states)


def length(blocks: nnx.Module) -> int:
    """Number of layers of a stacked module."""
    return jax.tree.leaves(nnx.state(blocks))[0].shape[0]


def run(
    blocks: nnx.Module,
    carry: Carry,
    apply: Callable[..., Carry],
    *shared: Any,
    per_layer: Any = None,
    mode: Mode = "scan",
    remat: Remat = "none",
    taps: Sequence[int] = (),
) -> tuple[Carry, Any]:
    """Applies the blocks one after the other.

    Args:
      blocks: made by `stacked`.
      carry: what enters the first block and leaves the last; a pytree of arrays.
      apply: `apply(block, carry, *shared) -> carry`, or `apply(block, carry, layer_input, *shared)` when
        `per_layer` is given. With mode "host_loop" it must be the same function object at every call, or
        each call compiles anew.
      shared: pytrees that every block sees.
      per_layer: pytree whose leaves have a leading [L]; block l sees slice l.
      mode: "scan" compiles one block; "unroll" compiles all of them in a row; "host_loop" calls one jitted
        block in turn from Python, so that only one layer's temporaries exist at a time (not inside a jit).
      remat: what the backward pass recomputes: "none", "full" (all but the carries) or "dots" (all but
        matrix products).
      taps: layers whose carry is kept, in ascending order.

    Returns:
      The last carry, and the carries after the layers in `taps` stacked on a leading axis [len(taps)].

    Raises:
      ValueError: if `taps` are not ascending layer numbers.
    """
    count = length(blocks)
    if list(taps) != sorted(set(taps)) or any(not 0 <= tap < count for tap in taps):
        raise ValueError(f"taps must be ascending layer numbers below {count}, got {tuple(taps)}")
    graphdef, state = nnx.split(blocks)
    layers = (state, () if per_layer is None else (per_layer,))
    step: Callable[..., Any] = partial(_apply_layer, apply, graphdef)
    if mode == "host_loop":
        return _run_in_turn(partial(_jitted_layer, apply, graphdef), carry, layers, shared, count, taps)
    if remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=mode != "scan")
    if mode == "unroll":
        return _run_in_turn(step, carry, layers, shared, count, taps)
    return _run_scan(step, carry, layers, shared, count, taps)


def _apply_layer(apply, graphdef, layer, carry, shared):
    state, layer_input = layer
    return apply(nnx.merge(graphdef, state), carry, *layer_input, *shared)


_jitted_layer = jax.jit(_apply_layer, static_argnums=(0, 1))


def _run_in_turn(step, carry, layers, shared, count, taps):
    kept = []
    for index in range(count):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], layers)
        carry = step(layer, carry, shared)
        if index in taps:
            kept.append(carry)
    return carry, _stack(kept)


def _stack(kept):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept) if kept else ()


def _run_scan(step, carry, layers, shared, count, taps):
    # Taps are written into a carried buffer: as scan outputs they would keep every layer's carry.
    buffer = jax.tree.map(lambda leaf: jnp.zeros((len(taps), *leaf.shape), leaf.dtype), carry) if taps else ()
    slots = jnp.asarray([taps.index(layer) if layer in taps else -1 for layer in range(count)])

    def body(carried, inputs):
        value, kept = carried
        slot, layer = inputs
        value = step(layer, value, shared)
        if taps:
            kept = jax.tree.map(partial(_write, slot), kept, value)
        return (value, kept), None

    (carry, buffer), _ = jax.lax.scan(body, (carry, buffer), (slots, layers))
    return carry, buffer


def _write(slot, buffer, value):
    row = jnp.maximum(slot, 0)
    return buffer.at[row].set(jnp.where(slot >= 0, value, buffer[row]))
