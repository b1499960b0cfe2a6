"""Room for the next frame: old frames become prototypes in the long-term store, which forgets what is least used.

XMem, sections 3.3 and 3.4; upstream's `MemoryManager.compress_features` and
`KeyValueMemoryStore.remove_obsolete_features`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from rvseg_jax.models.xmem.affinity import masked_softmax, similarity
from rvseg_jax.models.xmem.config import MemoryConfig
from rvseg_jax.models.xmem.memory import NEWBORN, Memory, written


def make_room(memory: Memory, cfg: MemoryConfig) -> Memory:
    """Working memory with room for another frame; one that is not full is left as it is.

    With long-term memory the first frame and the last `min_mid_term_frames` - 1 stay and the others are consolidated;
    without it the oldest frame but the first is dropped.
    """
    room = _consolidated if cfg.enable_long_term else _without_oldest
    return jax.lax.cond(memory.frames >= memory.capacity, lambda full: room(full, cfg), lambda full: full, memory)


def _consolidated(memory: Memory, cfg: MemoryConfig) -> Memory:
    kept = cfg.min_mid_term_frames
    # Values that an object has for fewer frames than that stay in working memory.
    old_enough = (memory.owned > kept + 1) | (memory.owned == memory.capacity)
    memory = _without_obsolete(memory, cfg)
    start, length = memory.positions, (memory.capacity - kept) * memory.positions  # within working memory
    return _with_frames(_with_prototypes(memory, cfg, start, length, old_enough), kept)


def _with_prototypes(memory: Memory, cfg: MemoryConfig, start: int, length: int, old_enough: jax.Array) -> Memory:
    """The most used candidates as prototypes, their values and shrinkage drawn from all candidates (potentiation)."""
    here = slice(memory.long_capacity + start, memory.long_capacity + start + length)
    key, shrinkage, usage = memory.key[here], memory.shrinkage[here], memory.usage()[here]
    _, chosen = jax.lax.top_k(usage, min(cfg.num_prototypes, length))
    selection = memory.selection[start : start + length]
    scores = similarity(key, shrinkage, key[chosen], selection[chosen])
    # An object gives the candidates after its own first frame, as the first frame of the video is none.
    candidate = start + jnp.arange(length)
    behind = (memory.capacity - memory.owned + 1) * memory.positions
    valid = (candidate >= behind[:, None]) & old_enough[:, None]

    def values_of(value: jax.Array, valid: jax.Array) -> jax.Array:
        weights = masked_softmax(scores, valid)
        return jnp.matmul(weights, value[here].astype(jnp.float32), precision="highest")

    value = jax.vmap(values_of)(memory.value, valid)
    owned = valid[:, chosen]
    # Upstream keeps the values of later objects without gaps and lays them under the latest keys, not their own.
    value = jnp.take_along_axis(value, jnp.argsort(owned, axis=1, stable=True)[..., None], axis=1)
    weakest = jnp.matmul(masked_softmax(scores, jnp.ones(length, bool)), shrinkage, precision="highest")
    end, count = memory.long_size, len(chosen)

    return replace(
        memory,
        key=written(memory.key, key[chosen], end),
        shrinkage=written(memory.shrinkage, weakest, end),
        value=written(memory.value, value, end, axis=1),
        use=written(memory.use, jnp.zeros(count), end),
        life=written(memory.life, jnp.full(count, NEWBORN), end),
        long_size=end + count,
        long_owned=memory.long_owned + owned.sum(1, dtype=jnp.int32),
    )


def _without_obsolete(memory: Memory, cfg: MemoryConfig) -> Memory:
    """The long-term store with room for the prototypes of a consolidation; it stays in order, without gaps."""
    limit = memory.long_capacity
    surplus = memory.long_size - (limit - cfg.num_prototypes)
    element = jnp.arange(limit)
    there = element < memory.long_size
    # The least used go, and with them all that are used as little; without a count, the oldest.
    usage = memory.usage()[:limit] if cfg.enable_long_term_count_usage else element.astype(jnp.float32)
    last = jnp.sort(jnp.where(there, usage, jnp.inf))[jnp.clip(surplus - 1, 0, limit - 1)]
    stays = there & ((usage > last) | (surplus <= 0))
    order = jnp.argsort(~stays, stable=True)
    own = element >= (memory.long_size - memory.long_owned)[:, None]
    return replace(
        memory,
        key=memory.key.at[:limit].set(memory.key[order]),
        shrinkage=memory.shrinkage.at[:limit].set(memory.shrinkage[order]),
        value=memory.value.at[:, :limit].set(memory.value[:, order]),
        use=memory.use.at[:limit].set(memory.use[order]),
        life=memory.life.at[:limit].set(memory.life[order]),
        long_size=stays.sum(dtype=jnp.int32),
        long_owned=(own & stays).sum(1, dtype=jnp.int32),
    )


def _with_frames(memory: Memory, kept: int) -> Memory:
    """Working memory with its first frame and the last `kept` - 1."""
    positions, begin = memory.positions, memory.long_capacity
    total = memory.capacity

    def moved(buffer: jax.Array, begin: int) -> jax.Array:
        parts = [buffer[begin : begin + positions], buffer[begin + (total - kept + 1) * positions :]]
        return jax.lax.dynamic_update_slice_in_dim(buffer, jnp.concatenate(parts), begin, 0)

    # An object that appeared later keeps its own first frame, which upstream then reads by the keys of the video's
    # first: its values stay `kept` frames long, and the keys that they are laid under are the latest `kept`.
    first = begin + (total - jnp.clip(memory.owned, kept, total)) * positions

    def moved_value(value: jax.Array, first: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(value, first, positions)
        latest = value[begin + (total - kept + 1) * positions :]
        return jax.lax.dynamic_update_slice_in_dim(value, jnp.concatenate([own, latest]), begin, 0)

    return replace(
        memory,
        key=moved(memory.key, begin),
        shrinkage=moved(memory.shrinkage, begin),
        selection=moved(memory.selection, 0),
        value=jax.vmap(moved_value)(memory.value, first),
        use=moved(memory.use, begin),
        life=moved(memory.life, begin),
        frames=jnp.int32(kept),
        owned=jnp.minimum(memory.owned, kept),
    )


def _without_oldest(memory: Memory, cfg: MemoryConfig) -> Memory:
    """Working memory without its second frame."""
    del cfg
    full = memory.owned == memory.capacity
    owned = jnp.where(full, memory.capacity - 1, jnp.minimum(memory.owned, memory.capacity - 2))
    return replace(_with_frames(memory, memory.capacity - 1), owned=owned)
