"""Which of the remembered frames the current one attends to; `SAM2Base._prepare_memory_conditioned_features`."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rvseg_jax.models.sam2.memory_attention import MemoryTokens
from rvseg_jax.models.sam2.object_pointers import pointer_tokens
from rvseg_jax.models.sam2.position_encoding import sine_encoding
from rvseg_jax.models.sam2.tracking_state import TrackState

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import Sam2


def closest(frames: jax.Array, frame: jax.Array, most: int) -> jax.Array:
    """Which prompted frames are attended to: the last one before, the first one from here on, then the nearest.

    Equally near ones count in the order of their slots.

    Shapes: frames int [B, K] with -1 for empty slots, frame int [B] -> bool [B, K].

    Args:
      most: at most so many, 2 or more; -1 for all.

    Raises:
      ValueError: if `most` is neither -1 nor at least 2.

    Source: `select_closest_cond_frames`, sam2/modeling/sam2_utils.py.
    """
    valid = frames >= 0
    if most != -1 and most < 2:
        raise ValueError(f"max_cond_frames_in_attn is {most}: give -1 for all, or 2 or more")
    if most == -1 or most >= frames.shape[1]:
        return valid
    here, far = frame[:, None], jnp.iinfo(jnp.int32).max
    before, after = valid & (frames < here), valid & (frames >= here)
    last = before & (frames == jnp.max(jnp.where(before, frames, -1), axis=1, keepdims=True))
    first = after & (frames == jnp.min(jnp.where(after, frames, far), axis=1, keepdims=True))
    distance = jnp.where(last | first, -1, jnp.abs(frames - here))
    order = jnp.argsort(jnp.where(valid, distance, far), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    return valid & (rank < most)


def steps_back(frames: jax.Array, frame: jax.Array, reverse: jax.Array, stride: int) -> jax.Array:
    """How many steps of the memory's raster a frame lies behind the current one, in the direction of tracking.

    The frame before is 1; from 2 on only every `stride`-th frame of the video lies on the raster. What does not is 0,
    or less for frames ahead.

    Shapes: frames int [B, S], frame int [B], reverse bool [B] -> int [B, S].
    """
    here, back = frame[:, None], reverse[:, None]
    distance = jnp.where(back, frames - here, here - frames)
    if stride == 1:
        return distance
    second = jnp.where(back, -(-(here + 2) // stride) * stride, (here - 2) // stride * stride)
    beyond = jnp.where(back, frames - second, second - frames)
    on_raster = (beyond >= 0) & (beyond % stride == 0)
    return jnp.where(distance == 1, 1, jnp.where(on_raster, beyond // stride + 2, 0))


def memory_tokens(
    model: "Sam2",
    state: TrackState,
    frame: jax.Array,
    num_frames: jax.Array,
    reverse: jax.Array,
    *,
    train: bool = False,
) -> MemoryTokens:
    """All slots of the state as tokens, of which those are valid that upstream would look up.

    Shapes: frame, num_frames int [B], reverse bool [B].

    Args:
      num_frames: length of each row's video; short videos scale the pointers' distances by it.
      reverse: whether the row is tracked towards the beginning.
      train: without what upstream does in evaluation only: the memory's stride, and pointers of the past alone.
    """
    cfg = model.cfg
    settings, ring = cfg.tracking, cfg.num_maskmem - 1
    frames = jnp.concatenate([state.prompted.frame, state.memory_frame], axis=1)
    selected = closest(state.prompted.frame, frame, settings.max_cond_frames_in_attn)
    chosen = jnp.pad(selected, ((0, 0), (0, state.memory_frame.shape[1])))
    step = steps_back(frames, frame, reverse, 1 if train else settings.memory_temporal_stride_for_eval)
    recent = (frames >= 0) & (step >= 1) & (step <= ring)
    times = model.maskmem_tpos_enc[...].astype(jnp.float32)
    # The last row of the table is for prompted frames, the others count steps back.
    time = times[jnp.where(chosen, ring, jnp.clip(step - 1, 0, ring))]
    memories = jnp.concatenate([state.prompted.memory, state.memory], axis=1)
    rows, slots, height, width, channels = memories.shape
    places = sine_encoding(height, width, channels, temperature=cfg.position_encoding_temperature)
    positions = places.reshape(-1, channels) + time[:, :, None, :]
    tokens = memories.reshape(rows, slots, height * width, channels)
    pointers = _pointers(model, state, selected, frame, num_frames, reverse, train)
    return MemoryTokens(tokens, positions, chosen | recent, *pointers)


def _pointers(
    model: "Sam2",
    state: TrackState,
    selected: jax.Array,
    frame: jax.Array,
    num_frames: jax.Array,
    reverse: jax.Array,
    train: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    settings = model.cfg.tracking
    if not settings.use_obj_ptrs_in_encoder:
        none = jnp.zeros((state.rows, 0, model.cfg.mem_dim))
        return none, none, jnp.zeros((state.rows, 0), jnp.bool_)
    most = jnp.minimum(num_frames, settings.max_obj_ptrs_in_encoder)
    frames = jnp.concatenate([state.prompted.frame, state.pointer_frame], axis=1)
    chosen = jnp.pad(selected, ((0, 0), (0, state.pointer_frame.shape[1])))
    distance = jnp.where(reverse[:, None], frames - frame[:, None], frame[:, None] - frames)
    recent = (frames >= 0) & (distance >= 1) & (distance < most[:, None])
    past_only = settings.only_obj_ptrs_in_the_past_for_eval and not train
    valid = jnp.where(chosen, distance >= 0 if past_only else chosen, recent)
    pointers = jnp.concatenate([state.prompted.pointer, state.pointer], axis=1)
    signed = distance if settings.use_signed_tpos_enc_to_obj_ptrs else jnp.abs(distance)
    return pointer_tokens(model, pointers, signed, valid, most - 1)
