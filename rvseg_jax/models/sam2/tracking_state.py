"""What is remembered of a video while objects are followed through it: slots of fixed size, whatever its length.

A row is one object in one video. Each row has

* slots of prompted frames (upstream's conditioning frames): memory, object pointer, and the mask that was given out;
* a ring of memories of the latest tracked frames, and a longer one of their object pointers.

A tracked frame t lies in slot t modulo the size of its ring, so that any run of frames that is not longer than the
ring is there as a whole, forwards or backwards. Upstream keeps every frame of the video; what that changes is said
in `tracking`.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from rvseg_jax.models.sam2.config import Sam2Config

# The frame of a slot that holds nothing.
NO_FRAME = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptedFrames:
    """Slots of prompted frames, in the order in which they were prompted.

    Shapes: frame int [B, K], memory [B, K, h, w, M], pointer [B, K, D], logits [B, K, H, W], iou [B, K],
      object_score [B, K].
    """

    frame: jax.Array
    memory: jax.Array
    pointer: jax.Array
    logits: jax.Array
    iou: jax.Array
    object_score: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackState:
    """The state of all rows.

    Shapes: memory [B, R, h, w, M], memory_frame int [B, R], pointer [B, P, D], pointer_frame int [B, P].

    Attributes:
      prompted: slots of prompted frames.
      memory, memory_frame: ring of tracked frames' memories, and which frame each is of, -1 where empty.
      pointer, pointer_frame: ring of tracked frames' object pointers.
    """

    prompted: PromptedFrames
    memory: jax.Array
    memory_frame: jax.Array
    pointer: jax.Array
    pointer_frame: jax.Array

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.memory_frame.shape[0]

    @property
    def active(self) -> jax.Array:
        """Which rows hold an object, that is, any prompted frame. Shapes: -> bool [B]."""
        return jnp.any(self.prompted.frame >= 0, axis=1)

    def row(self, index: int | jax.Array) -> "TrackState":
        """The state of one row, which still has an axis of length 1."""
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), self)

    def with_row(self, index: int | jax.Array, row: "TrackState") -> "TrackState":
        """This state with the row `index` replaced by the only row of `row`."""

        def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(leaf, new, index, 0)

        return jax.tree.map(put, self, row)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameMemory:
    """What is remembered of one frame.

    Shapes: memory [B, h, w, M], pointer [B, D], logits [B, H, W], iou [B], object_score [B].
    """

    memory: jax.Array
    pointer: jax.Array
    logits: jax.Array
    iou: jax.Array
    object_score: jax.Array


def empty_state(
    cfg: Sam2Config,
    rows: int,
    *,
    prompted_slots: int = 1,
    memory_slots: int | None = None,
    pointer_slots: int | None = None,
    memory_dtype: str | None = None,
) -> TrackState:
    """A state in which nothing is remembered.

    Args:
      rows: objects, those of the first video first; of several videos as many of each.
      prompted_slots: prompted frames that are remembered of a row; `grown` makes more of them.
      memory_slots: size of the ring of memories, by default the least with which plain tracking finds all it looks
        for: `num_maskmem - 1` at a stride of 1. With as many as the video has frames, whatever order the frames
        are tracked in finds what upstream finds.
      pointer_slots: size of the ring of pointers, by default `max_obj_ptrs_in_encoder`.
      memory_dtype: format of memories, by default the config's.

    Raises:
      ValueError: if there are no rows, no slots, or too few for plain tracking.
    """
    least = (cfg.num_maskmem - 2) * cfg.tracking.memory_temporal_stride_for_eval + 1
    memory_slots = least if memory_slots is None else memory_slots
    most_pointers = cfg.tracking.max_obj_ptrs_in_encoder
    pointer_slots = most_pointers if pointer_slots is None else pointer_slots
    if min(rows, prompted_slots) < 1:
        raise ValueError(f"rows is {rows} and prompted_slots {prompted_slots}: both must be at least 1")
    if memory_slots < least or pointer_slots < most_pointers - 1:
        raise ValueError(
            f"memory_slots {memory_slots} must be at least {least} and pointer_slots {pointer_slots} at least "
            f"{most_pointers - 1}, or tracking would forget what it needs"
        )
    side, low, width = cfg.image_embedding_size, cfg.low_res_size, cfg.d_model
    kept = jnp.dtype(memory_dtype or cfg.tracking.memory_dtype)
    compute = cfg.precision.compute_dtype

    def frames(slots: int) -> jax.Array:
        return jnp.full((rows, slots), NO_FRAME, jnp.int32)

    def memories(slots: int) -> jax.Array:
        return jnp.zeros((rows, slots, side, side, cfg.mem_dim), kept)

    prompted = PromptedFrames(
        frames(prompted_slots),
        memories(prompted_slots),
        jnp.zeros((rows, prompted_slots, width), compute),
        jnp.zeros((rows, prompted_slots, low, low), jnp.float32),
        jnp.zeros((rows, prompted_slots), jnp.float32),
        jnp.zeros((rows, prompted_slots), jnp.float32),
    )
    pointers = jnp.zeros((rows, pointer_slots, width), compute)
    return TrackState(prompted, memories(memory_slots), frames(memory_slots), pointers, frames(pointer_slots))


def grown(state: TrackState, *, rows: int | None = None, prompted_slots: int | None = None) -> TrackState:
    """The same state with room for more rows or more prompted frames. Functions compile anew for another size.

    Raises:
      ValueError: if that would be fewer than there are.
    """
    rows = state.rows if rows is None else rows
    slots = state.prompted.frame.shape[1]
    prompted_slots = slots if prompted_slots is None else prompted_slots
    if rows < state.rows or prompted_slots < slots:
        raise ValueError(
            f"a state of {state.rows} rows and {slots} prompted frames cannot become one of {rows} and {prompted_slots}"
        )

    def pad(leaf: jax.Array, axis: int, size: int, empty: int) -> jax.Array:
        widths = [(0, 0)] * leaf.ndim
        widths[axis] = (0, size - leaf.shape[axis])
        return jnp.pad(leaf, widths, constant_values=empty)

    def filler(leaf: jax.Array) -> int:
        return NO_FRAME if jnp.issubdtype(leaf.dtype, jnp.integer) else 0

    prompted = jax.tree.map(lambda leaf: pad(leaf, 1, prompted_slots, filler(leaf)), state.prompted)
    return jax.tree.map(lambda leaf: pad(leaf, 0, rows, filler(leaf)), replace(state, prompted=prompted))


def remember(
    state: TrackState, seen: FrameMemory, frame: jax.Array, *, as_prompted: jax.Array, as_tracked: jax.Array
) -> TrackState:
    """The state after a frame; rows that are neither keep what they had.

    A prompted frame takes the slot that it had, else the first empty one, else that of the prompted frame which is
    farthest away in time, and is no tracked frame any more.

    Shapes: frame int [B], as_prompted and as_tracked bool [B].
    """
    slots = state.prompted
    here = slots.frame == frame[:, None]
    free = slots.frame == NO_FRAME
    distance = jnp.where(free, jnp.iinfo(jnp.int32).max, jnp.abs(slots.frame - frame[:, None]))
    slot = jnp.where(jnp.any(here, axis=1), jnp.argmax(here, axis=1), jnp.argmax(distance, axis=1))
    chosen = jax.nn.one_hot(slot, slots.frame.shape[1], dtype=jnp.bool_) & as_prompted[:, None]
    prompted = PromptedFrames(
        jnp.where(chosen, frame[:, None], slots.frame),
        _put(chosen, seen.memory, slots.memory),
        _put(chosen, seen.pointer, slots.pointer),
        _put(chosen, seen.logits, slots.logits),
        _put(chosen, seen.iou, slots.iou),
        _put(chosen, seen.object_score, slots.object_score),
    )
    state = replace(state, prompted=prompted)
    state = forget_tracked(state, as_prompted, frame, reach=0)
    memory_slot, pointer_slot = (_ring_slot(x, frame, as_tracked) for x in (state.memory_frame, state.pointer_frame))
    return replace(
        state,
        memory=_put(memory_slot, seen.memory, state.memory),
        memory_frame=jnp.where(memory_slot, frame[:, None], state.memory_frame),
        pointer=_put(pointer_slot, seen.pointer, state.pointer),
        pointer_frame=jnp.where(pointer_slot, frame[:, None], state.pointer_frame),
    )


def forget_tracked(state: TrackState, rows: jax.Array, frame: jax.Array, *, reach: int) -> TrackState:
    """The state of `rows` without the tracked frames that are at most `reach` frames away from `frame`.

    Shapes: rows bool [B], frame int [B].

    Source: `SAM2VideoPredictor._clear_non_cond_mem_around_input`, for the object alone. (Upstream calls a method of
    another name, which it does not have.)
    """

    def cleared(frames: jax.Array) -> jax.Array:
        near = jnp.abs(frames - frame[:, None]) <= reach
        return jnp.where(near & rows[:, None], NO_FRAME, frames)

    return replace(state, memory_frame=cleared(state.memory_frame), pointer_frame=cleared(state.pointer_frame))


def frame_memory(state: TrackState, frame: jax.Array) -> FrameMemory:
    """What is remembered of a prompted frame; without meaning where `frame` is none. Shapes: frame int [B]."""
    slots = state.prompted
    slot = jnp.argmax(slots.frame == frame[:, None], axis=1)

    def take(leaf: jax.Array) -> jax.Array:
        index = slot.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.take_along_axis(leaf, index, axis=1)[:, 0]

    return FrameMemory(*map(take, (slots.memory, slots.pointer, slots.logits, slots.iou, slots.object_score)))


def without_rows(state: TrackState, rows: jax.Array) -> TrackState:
    """The state with nothing remembered in `rows`, which are free for other objects. Shapes: rows bool [B]."""

    def cleared(frames: jax.Array) -> jax.Array:
        return jnp.where(rows[:, None], NO_FRAME, frames)

    return replace(
        state,
        prompted=replace(state.prompted, frame=cleared(state.prompted.frame)),
        memory_frame=cleared(state.memory_frame),
        pointer_frame=cleared(state.pointer_frame),
    )


def _ring_slot(frames: jax.Array, frame: jax.Array, rows: jax.Array) -> jax.Array:
    """Where a tracked frame goes. Shapes: frames [B, R], frame [B], rows bool [B] -> bool [B, R]."""
    size = frames.shape[1]
    return jax.nn.one_hot(frame % size, size, dtype=jnp.bool_) & rows[:, None]


def _put(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Shapes: chosen bool [B, S], new [B, ...], old [B, S, ...] -> [B, S, ...] in the format of old."""
    chosen = chosen.reshape(*chosen.shape, *(1,) * (old.ndim - 2))
    return jnp.where(chosen, new[:, None].astype(old.dtype), old)
