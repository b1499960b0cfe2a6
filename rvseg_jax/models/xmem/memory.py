"""Working, long-term and sensory memory of one video, in arrays whose size never changes.

Elements of the long-term store lie in front of those of working memory. Elements that objects share (keys, shrinkage,
usage) are held once; each object has values of its own. An object that appears later owns only the latest elements of
either store, as upstream's object groups do (`inference/memory_manager.py`, `inference/kv_memory_store.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

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
    that the similarity of all positions with all of memory never exists at once, and only as much of the memory is
    looked at as the next of a few sizes holds. The memory must have room for a frame (`consolidation.make_room`).

    Shapes: key, selection float32 [h, w, key_dim] -> [O, h, w, value_dim], zeros for objects without values.
    """
    reaches, chosen = _reaches(memory)
    found = [partial(_nearest, memory, key, selection, cfg, *reach) for reach in reaches]
    weights, elements = jax.lax.switch(chosen, found) if len(found) > 1 else found[0]()

    def of_object(value: jax.Array, group: jax.Array) -> jax.Array:
        # One addend after the other, so that the values of all never exist at once.
        readout = jnp.zeros((memory.positions, value.shape[-1]))
        for place in range(weights.shape[-1]):
            readout += weights[group, :, place, None] * value[elements[group, :, place]].astype(jnp.float32)
        return readout

    readout = jax.vmap(of_object)(memory.value, memory.group)
    readout = jnp.where(memory.present[:, None, None], readout, 0)
    # The first group has values for every element, so it alone counts usage.
    use = memory.use.at[elements[0]].add(weights[0])
    return readout.reshape(*memory.hidden.shape[:3], -1), replace(memory, use=use, life=memory.life + 1)


def _reaches(memory: Memory) -> tuple[list[tuple[int, int]], jax.Array]:
    """Parts of memory that a read may look at, as long-term elements and frames, and which of them is enough now."""
    full = max(memory.capacity - 1, 1)
    works = sorted({min(2, full), -(-full // 2), full})
    longs = sorted({memory.long_capacity // 8, memory.long_capacity} - {0})
    work = sum((memory.frames > frames).astype(jnp.int32) for frames in works[:-1])
    long = sum((memory.long_size > elements).astype(jnp.int32) for elements in longs[:-1])
    chosen = jnp.where(memory.long_size > 0, len(works) + long, work)
    return [(0, frames) for frames in works] + [(elements, full) for elements in longs], chosen


def _nearest(
    memory: Memory, key: jax.Array, selection: jax.Array, cfg: MemoryConfig, long: int, frames: int
) -> tuple[jax.Array, jax.Array]:
    """The elements that each position reads from, among the first `long` and `frames`, in a row for every group.

    Shapes: -> weights float32 [O, h w, K], elements int32 [O, h w, K]; the rows of groups that there are not are zeros
    or copies.
    """
    work = slice(memory.long_capacity, memory.long_capacity + frames * memory.positions)

    def part(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x[:long], x[work]]) if long else x[work]

    keys, shrinkage = part(memory.key), part(memory.shrinkage)
    valid = jax.vmap(part)(_valid(memory))  # one row an object
    firsts = jnp.argmax(memory.group == jnp.arange(len(valid))[:, None], axis=1)  # an object of each group
    width = min(cfg.top_k, memory.key.shape[0])

    def of_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = similarity(keys, shrinkage, *block)

        def of_group(group: int | jax.Array) -> tuple[jax.Array, jax.Array]:
            weights, elements = strongest(scores, valid[firsts[group]], cfg.top_k)
            elements = jnp.where(elements < long, elements, elements + (memory.long_capacity - long))
            spare = ((0, 0), (0, width - weights.shape[1]))
            return jnp.pad(weights, spare), jnp.pad(elements, spare)

        return _by_group(of_group, memory.groups, len(valid))

    # As much at a time as `query_block` positions against all of memory.
    rows = max(cfg.query_block * memory.key.shape[0] // max(len(keys), 1), 1)
    blocks = -(-memory.positions // rows)
    rows = -(-memory.positions // blocks)

    def blocked(x: jax.Array) -> jax.Array:
        flat = jnp.pad(x.reshape(memory.positions, -1), ((0, blocks * rows - memory.positions), (0, 0)))
        return flat.reshape(blocks, rows, -1)

    inputs = (blocked(key), blocked(selection))
    if platform() == "cpu":
        each = [of_block((inputs[0][index], inputs[1][index])) for index in range(blocks)]
        found = tuple(jnp.stack(parts) for parts in zip(*each, strict=True))
    else:
        found = jax.lax.map(of_block, inputs)
    weights, elements = (
        jnp.moveaxis(x, 1, 0).reshape(len(valid), blocks * rows, width)[:, : memory.positions] for x in found
    )
    return weights, elements


def _by_group(
    of_group: Callable[[int | jax.Array], tuple[jax.Array, jax.Array]], groups: jax.Array, room: int
) -> tuple[jax.Array, jax.Array]:
    """`of_group` of the groups that there are, stacked. Shapes: groups int [] -> each [room, ...]."""
    first = of_group(0)
    blank = jax.tree.map(jnp.zeros_like, first)
    if platform() == "cpu":
        # Inside a loop, XLA's top-k on CPU is a sort.
        later = [jax.lax.cond(groups > group, partial(of_group, group), lambda: blank) for group in range(1, room)]
        weights, elements = (jnp.stack(parts) for parts in zip(first, *later, strict=True))
        return weights, elements

    def put(group: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = of_group(group)
        return found[0].at[group].set(new[0]), found[1].at[group].set(new[1])

    start = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype).at[0].set(x), first)
    return jax.lax.fori_loop(1, groups, put, start)


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
