"""How well memory elements answer queries, and what is read with that, as in upstream's `model/memory_util.py`."""

import math

import jax
import jax.numpy as jnp


def similarity(key: jax.Array, shrinkage: jax.Array, query: jax.Array, selection: jax.Array) -> jax.Array:
    """Anisotropic negative squared distances, at most 0: -s / sqrt(C) * sum_c e_c (k_c - q_c)^2.

    Shapes: key float32 [..., N, C], shrinkage [..., N], query [..., Q, C], selection [..., Q, C] -> [..., Q, N].

    Source: XMem, section 3.3 and the expansion in its appendix.
    """
    # Both products with memory at once. The terms nearly cancel, so they need all bits.
    wanted = jnp.concatenate([selection, query * selection], axis=-1)
    held = jnp.concatenate([-jnp.square(key), 2 * key], axis=-1)
    products = jnp.einsum("...qc,...nc->...qn", wanted, held, precision="highest")
    own = jnp.sum(selection * jnp.square(query), axis=-1, keepdims=True)
    return (products - own) * (shrinkage / math.sqrt(key.shape[-1]))[..., None, :]


def strongest(scores: jax.Array, valid: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Softmax over the `count` highest scores of each query among valid elements, or over all where there are fewer.

    Shapes: scores float32 [Q, N], valid bool [N] -> weights [Q, K] and elements int32 [Q, K], K = min(count, N).
    Weights add up to 1, and are 0 for elements that are not valid; if none is, all are.
    """
    best, elements = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(count, scores.shape[-1]))
    return masked_softmax(best, best > -jnp.inf), elements


def masked_softmax(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax over the last axis among valid entries; the others get 0, and so do all where none is valid."""
    scores = jnp.where(valid, scores, -jnp.inf)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(valid, jnp.exp(scores - jnp.where(highest > -jnp.inf, highest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)
