"""Working, long-term and sensory memory of one video, in arrays whose size never changes.

Elements of the long-term store lie in front of those of working memory. Elements that objects share (keys, shrinkage,
usage) are held once; each object has values of its own. An object that appears later owns only the latest elements of
either store, as upstream's object groups do (`inference/memory_manager.py`, `inference/kv_memory_store.py`).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.xmem.affinity import similarity, strongest
from rvseg_jax.models.xmem.config import STRIDE, MemoryConfig, XMemConfig
from rvseg_jax.parallel import platform

# The life of an element before it is first read; it keeps usage finite.
NEWBORN = 1e-7


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """Memory of a video with room for O objects. N = L + F * h * w elements: L long-term ones, then F frames.

    Attributes:
      key, shrinkage: float32 [N, key_dim] and [N].
      selection: float32 [F h w, key_dim], of working memory only.
      value: [O, N, value_dim].
      use, life: float32 [N]; how much and how often elements were read.
      frames: int32 [], frames in working memory.
      owned: int32 [O], the latest of them for which an object has values.
      long_size: int32 [], elements in the long-term store.
      long_owned: int32 [O], the latest of them for which an object has values.
      hidden: float32 [O, h, w, hidden_dim], the sensory memory.
      present: bool [O], objects that have appeared.
      group: int32 [O], which objects appeared together: 0, 1, ... in order.
      groups: int32 [], how many there are.
    """

    key: jax.Array
    shrinkage: jax.Array
    selection: jax.Array
    value: jax.Array
    use: jax.Array
    life: jax.Array
    frames: jax.Array
    owned: jax.Array
    long_size: jax.Array
    long_owned: jax.Array
    hidden: jax.Array
    present: jax.Array
    group: jax.Array
    groups: jax.Array

    @property
    def positions(self) -> int:
        """Elements of a frame, h * w."""
        return self.hidden.shape[1] * self.hidden.shape[2]

    @property
    def capacity(self) -> int:
        """Frames that working memory has room for, F."""
        return self.selection.shape[0] // self.positions

    @property
    def long_capacity(self) -> int:
        """Elements that the long-term store has room for, L."""
        return self.key.shape[0] - self.selection.shape[0]

    def usage(self) -> jax.Array:
        """How much of a read each element got on average. Shapes: -> float32 [N]."""
        return self.use / self.life


def empty_memory(cfg: XMemConfig, memory: MemoryConfig, *, size: tuple[int, int], objects: int) -> Memory:
    """Memory without any element, for frames of `size` pixels and at most `objects` objects.

    Raises:
      InputError: if there is no pixel or no object.
    """
    if min(size) < 1 or objects < 1:
        raise InputError(f"a memory for frames of {size} pixels and {objects} objects: all must be at least 1")
    height, width = (-(-side // STRIDE) for side in size)
    work = memory.max_mid_term_frames * height * width
    elements = work + (memory.max_long_term_elements if memory.enable_long_term else 0)
    return Memory(
        key=jnp.zeros((elements, cfg.key_dim)),
        shrinkage=jnp.ones(elements),
        selection=jnp.zeros((work, cfg.key_dim)),
        value=jnp.zeros((objects, elements, cfg.value_dim), cfg.precision.compute_dtype),
        use=jnp.zeros(elements),
        life=jnp.full(elements, NEWBORN, jnp.float32),
        frames=jnp.int32(0),
        owned=jnp.zeros(objects, jnp.int32),
        long_size=jnp.int32(0),
        long_owned=jnp.zeros(objects, jnp.int32),
        hidden=jnp.zeros((objects, height, width, cfg.hidden_dim)),
        present=jnp.zeros(objects, bool),
        group=jnp.zeros(objects, jnp.int32),
        groups=jnp.int32(0),
    )


def with_room(memory: Memory, objects: int) -> Memory:
    """The same memory with room for more objects.

    Raises:
      InputError: for fewer than it has room for.
    """
    more = objects - memory.present.shape[0]
    if more < 0:
        raise InputError(f"{objects} objects: the memory already has room for {memory.present.shape[0]}")
    grown = {
        name: jnp.pad(leaf, ((0, more), *((0, 0),) * (leaf.ndim - 1)))
        for name in ("value", "owned", "long_owned", "hidden", "present", "group")
        for leaf in (getattr(memory, name),)
    }
    return replace(memory, **grown)


def appear(memory: Memory, objects: jax.Array) -> Memory:
    """The memory after objects that were not there before have appeared together.

    Shapes: objects bool [O]; those that are there already change nothing.
    """
    new = objects & ~memory.present
    return replace(
        memory,
        present=memory.present | objects,
        group=jnp.where(new, memory.groups, memory.group),
        groups=memory.groups + jnp.any(new),
    )


def read(memory: Memory, key: jax.Array, selection: jax.Array, cfg: MemoryConfig) -> tuple[jax.Array, Memory]:
    """What each object's values say at the positions of a frame, and the memory with its usage counted.

    Each position reads from its `top_k` nearest elements of both stores together. Positions are taken in blocks, so
    that the similarity of all positions with all of memory never exists at once.

    Shapes: key, selection float32 [h, w, key_dim] -> [O, h, w, value_dim], zeros for objects without values.
    """
    skipped = memory.long_capacity

    def whole() -> tuple[jax.Array, jax.Array]:
        return _read(memory, key, selection, cfg, 0)

    def work_only() -> tuple[jax.Array, jax.Array]:
        return _read(memory, key, selection, cfg, skipped)

    readout, usage = jax.lax.cond(memory.long_size > 0, whole, work_only) if skipped else work_only()
    return readout, replace(memory, use=memory.use + usage, life=memory.life + 1)


def _read(
    memory: Memory, key: jax.Array, selection: jax.Array, cfg: MemoryConfig, start: int
) -> tuple[jax.Array, jax.Array]:
    """Reads from the elements from `start` on. Shapes: -> readout [O, h, w, value_dim], usage float32 [N]."""
    queries = memory.positions
    blocks = -(-queries // cfg.query_block)
    rows = -(-queries // blocks)

    def blocked(x: jax.Array) -> jax.Array:
        flat = jnp.pad(x.reshape(queries, -1), ((0, blocks * rows - queries), (0, 0)))
        return flat.reshape(blocks, rows, -1)

    valid = _valid(memory)[:, start:]  # one row an object
    firsts = jnp.argmax(memory.group == jnp.arange(len(valid))[:, None], axis=1)  # an object of each group

    def read_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = similarity(memory.key[start:], memory.shrinkage[start:], *block)
        count = min(cfg.top_k, scores.shape[1])
        blank = (jnp.zeros((len(valid), rows, count)), jnp.zeros((len(valid), rows, count), jnp.int32))

        def of_group(group: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            weights, elements = strongest(scores, valid[firsts[group]], count)
            return found[0].at[group].set(weights), found[1].at[group].set(elements)

        # The first group, mostly the only one, outside of the loop, where XLA's top-k on CPU would be a sort.
        found = of_group(jnp.zeros((), jnp.int32), blank)
        weights, elements = jax.lax.fori_loop(1, memory.groups, of_group, found)

        def of_object(value: jax.Array, group: jax.Array) -> jax.Array:
            chosen = value[elements[group] + start].astype(jnp.float32)
            return jnp.einsum("qk,qkc->qc", weights[group], chosen, precision="highest")

        read_out = jax.vmap(of_object)(memory.value, memory.group)
        # The first group has values for every element, so it alone counts usage.
        return read_out, weights[0], elements[0]

    inputs = (blocked(key), blocked(selection))
    if platform() == "cpu":
        each = [read_block((inputs[0][index], inputs[1][index])) for index in range(blocks)]
        readout, weights, elements = (jnp.stack(parts) for parts in zip(*each, strict=True))
    else:
        readout, weights, elements = jax.lax.map(read_block, inputs)
    readout = jnp.moveaxis(readout, 1, 0).reshape(len(valid), blocks * rows, -1)[:, :queries]
    weights, elements = (x.reshape(blocks * rows, -1)[:queries] for x in (weights, elements))
    usage = jnp.zeros(memory.key.shape[0]).at[elements + start].add(weights)
    readout = jnp.where(memory.present[:, None, None], readout, 0)
    return readout.reshape(*memory.hidden.shape[:3], -1), usage


def _valid(memory: Memory) -> jax.Array:
    """Which elements an object has values for. Shapes: -> bool [O, N]."""
    frame = jnp.arange(memory.capacity)
    work = (frame >= (memory.frames - memory.owned)[:, None]) & (frame < memory.frames)
    element = jnp.arange(memory.long_capacity)
    long = (element >= (memory.long_size - memory.long_owned)[:, None]) & (element < memory.long_size)
    return jnp.concatenate([long, jnp.repeat(work, memory.positions, axis=1)], axis=1)


def written(buffer: jax.Array, rows: jax.Array, start: jax.Array, *, axis: int = 0) -> jax.Array:
    """`buffer` with `rows` in place of as many of its own from `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), start, axis)


def remember(
    memory: Memory,
    key: jax.Array,
    shrinkage: jax.Array,
    selection: jax.Array,
    value: jax.Array,
    store: jax.Array | bool = True,
) -> Memory:
    """Working memory with one more frame, which it must have room for (`consolidation.make_room`).

    Shapes: key, selection float32 [h, w, key_dim], shrinkage [h, w], value [O, h, w, value_dim], store bool []: false
    leaves the memory as it was.
    """
    at = memory.frames * memory.positions
    place = memory.long_capacity + at

    # What lies behind the last frame is never read: a frame that is not stored may be written there all the same.
    rows = jnp.ones(memory.positions)
    flat = value.reshape(value.shape[0], memory.positions, -1)
    more = jnp.asarray(store, jnp.int32)
    return replace(
        memory,
        key=written(memory.key, key.reshape(memory.positions, -1), place),
        shrinkage=written(memory.shrinkage, shrinkage.reshape(-1), place),
        selection=written(memory.selection, selection.reshape(memory.positions, -1), at),
        value=written(memory.value, flat, place, axis=1),
        use=written(memory.use, 0 * rows, place),
        life=written(memory.life, NEWBORN * rows, place),
        frames=memory.frames + more,
        owned=memory.owned + more * memory.present,
    )
