"""One frame of a video at a time: masks of all objects from the frame, its prompts and what is remembered.

Rows are objects: of V videos with O objects each, row v * O + o is object o of video v. Nothing depends on the length
of the video, and nothing compiles anew for another number of prompts, frame or direction. A session goes

    state = empty_state(cfg, rows)
    features = model.encode_image(frame)                          # not kept
    seen = observe(model, features, None, prompts, ...)           # a click, and perhaps another on the same frame
    state = settle(cfg, state, seen, frame, ...)                  # when tracking goes on
    state, seen = track_step(model, state, features, frame, ...)  # for every frame, forwards or backwards

Two things that upstream does need more than what is kept here:

* A prompt on a frame that was seen before needs that frame again, and to correct what was predicted there also its
  logits: the caller gives both. Logits of prompted frames are in the state.
* Upstream finds the memories of all frames ever tracked. Here a frame finds the latest ones, which are the same in
  a run forwards or backwards, and after a prompt. They differ where tracking jumps to a place that it has passed
  and then looks back at frames tracked longer ago than the ring is long. With `memory_slots` and `pointer_slots` of
  as many as the video has frames it finds all.

Source: sam2/modeling/sam2_base.py and sam2/sam2_video_predictor.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rvseg_jax.layers import stack
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.hole_filling import fill_holes
from rvseg_jax.models.sam2.mask_decoder import best_of, stable_or_best
from rvseg_jax.models.sam2.object_pointers import make_pointers, mix_absent
from rvseg_jax.models.sam2.position_encoding import sine_encoding
from rvseg_jax.models.sam2.prompt_encoder import EMPTY, PADDING, Prompts
from rvseg_jax.models.sam2.tracking_memory import memory_tokens
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.models.sam2.tracking_state import FrameMemory, TrackState, forget_tracked, frame_memory, remember
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import constrain

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import ImageFeatures, Sam2

# Logit of every pixel of an object that is not there.
NO_OBJ_SCORE = -1024.0
# A mask that the user gives is an output with these logits.
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0
# Objects that may not overlap get at most this logit where another is stronger.
_OVERLAPPED = -10.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Place:
    """Where in its video each row is, and how it is tracked.

    Attributes:
      frame: int [B], 0 for the first frame.
      num_frames: int [B], length of the video; a large number where it is not known.
      reverse: bool [B], towards the beginning.
      initial: bool [B], the row was not tracked on this frame before, so that a prompt is answered from the frame
        alone. Of no effect on rows without a prompt.
    """

    frame: jax.Array
    num_frames: jax.Array
    reverse: jax.Array
    initial: jax.Array

    @classmethod
    def of(
        cls, rows: int, frame: int, *, num_frames: int = 2**30, reverse: bool = False, initial: bool = True
    ) -> "Place":
        """The same place for all rows."""
        return cls(
            jnp.full((rows,), frame, jnp.int32),
            jnp.full((rows,), num_frames, jnp.int32),
            jnp.full((rows,), reverse, jnp.bool_),
            jnp.full((rows,), initial, jnp.bool_),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alternatives:
    """All masks that the decoder predicted, of which losses take the best.

    Shapes: logits float32 [B, M, H, W], iou float32 [B, M], valid bool [B, M].

    Attributes:
      valid: the single mask alone, or the several of an ambiguous prompt without it.
    """

    logits: jax.Array
    iou: jax.Array
    valid: jax.Array


Ask = Callable[[TrackPrompts], tuple["Answer", Alternatives]]


@dataclass(frozen=True)
class Training:
    """How a frame is observed in training.

    Attributes:
      remat: what the backward pass recomputes of the memory attention.
      dropout: key of the memory attention's dropout; None for none.
      refine: `refine(ask, answer) -> (answer, anything)`, called before the frame is remembered, to correct its masks
        by asking for them with other prompts; None leaves them as they are.
    """

    remat: stack.Remat = "none"
    dropout: jax.Array | None = None
    refine: Callable[[Ask, "Answer"], tuple["Answer", Any]] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answer:
    """What is predicted of a frame, before its memory. Fields as in `FrameMemory`."""

    pointer: jax.Array
    logits: jax.Array
    iou: jax.Array
    object_score: jax.Array


def observe(
    model: "Sam2",
    features: "ImageFeatures",
    state: TrackState | None,
    prompts: TrackPrompts | None,
    place: Place,
) -> FrameMemory:
    """Masks of all rows in a frame, and what would be remembered of it; the state does not change.

    Shapes: features of V frames, state and prompts of B rows, a multiple of V -> B rows.

    Args:
      state: what is remembered, or None where every row has a prompt on a frame of its own: cheaper, as nothing is
        attended to.
      prompts: or None for none.
    """
    seen, _, _ = _observe(model, features, state, prompts, place)
    return seen


def observe_training(
    model: "Sam2",
    features: "ImageFeatures",
    state: TrackState | None,
    prompts: TrackPrompts | None,
    place: Place,
    training: Training,
) -> tuple[FrameMemory, Alternatives, Any]:
    """As `observe`, by the rules of training, with all masks that were predicted, and what `training.refine` tells.

    In training no mask is made binary before it is remembered, no hole is filled, no unstable mask replaced, and
    pointers of later frames count.
    """
    return _observe(model, features, state, prompts, place, training)


def settle(cfg: Sam2Config, state: TrackState, seen: FrameMemory, place: Place, rows: jax.Array) -> TrackState:
    """The state after prompts of a frame were answered by `observe`, in `rows`.

    Upstream does this for all prompts at once when tracking goes on, `propagate_in_video_preflight`, so that a
    correction of one frame does not see that of another; whoever wants the same keeps what `observe` gave until then.

    Shapes: rows bool [B].
    """
    settings = cfg.tracking
    as_prompted = rows & (place.initial | settings.add_all_frames_to_correct_as_cond)
    state = remember(state, seen, place.frame, as_prompted=as_prompted, as_tracked=rows & ~as_prompted)
    return _forget_around(cfg, state, rows, place.frame)


def track_step(
    model: "Sam2",
    state: TrackState,
    features: "ImageFeatures",
    place: Place,
    prompts: TrackPrompts | None = None,
) -> tuple[TrackState, FrameMemory]:
    """Masks of all rows in a frame, which is remembered.

    A row whose frame is a prompted one gives out what was given out then. A row without an object gives -1024. A row
    with a prompt is answered and settled at once.

    Shapes: state and prompts of B rows, features of V frames, B a multiple of V.

    Args:
      place: frame and direction of every row, which may differ between videos.
      prompts: or None for none. (The function compiles once with and once without.)

    Returns:
      The state, to be given in place of `state`, and the frame's masks.
    """
    seen = observe(model, features, state, prompts, place)
    given = jnp.zeros_like(place.reverse) if prompts is None else prompts.given
    known = jnp.any(state.prompted.frame == place.frame[:, None], axis=1) & ~given
    tracked = state.active & ~given & ~known
    cfg = model.cfg
    if prompts is not None:
        state = settle(cfg, state, seen, place, given)
    earlier = frame_memory(state, place.frame)
    seen = jax.tree.map(lambda old, new: _where(known, old.astype(new.dtype), new), earlier, seen)
    state = _forget_around(cfg, state, known, place.frame)
    none = jnp.zeros_like(tracked)
    state = remember(state, seen, place.frame, as_prompted=none, as_tracked=tracked)
    present = tracked | known | given
    absent = replace(
        seen, logits=jnp.full_like(seen.logits, NO_OBJ_SCORE), object_score=jnp.full_like(seen.object_score, -10.0)
    )
    return state, jax.tree.map(lambda a, b: _where(present, a, b), seen, absent)


def enlarged(cfg: Sam2Config, logits: jax.Array, size: tuple[int, int], videos: int = 1) -> jax.Array:
    """Logits in the size of the video; objects of one video do not overlap if the config says so.

    Shapes: logits [B, H, W] -> [B, Hv, Wv].

    Source: `SAM2VideoPredictor._get_orig_video_res_output`.
    """
    if logits.shape[1:] != size:
        logits = resize(logits[..., None], size, mode="bilinear")[..., 0]
    return without_overlap(logits, videos) if cfg.tracking.non_overlap_masks else logits


def without_overlap(logits: jax.Array, videos: int = 1) -> jax.Array:
    """Logits of which only the largest at each place, among the objects of a video, may be above -10.

    Shapes: logits [B, H, W] of `videos` videos -> [B, H, W].

    Source: `SAM2Base._apply_non_overlapping_constraints`.
    """
    by_video = logits.reshape(videos, -1, *logits.shape[1:])
    strongest = jnp.argmax(by_video, axis=1, keepdims=True)
    own = jnp.arange(by_video.shape[1])[:, None, None] == strongest
    return jnp.where(own, by_video, jnp.minimum(by_video, _OVERLAPPED)).reshape(logits.shape)


def _observe(
    model: "Sam2",
    features: "ImageFeatures",
    state: TrackState | None,
    prompts: TrackPrompts | None,
    place: Place,
    training: Training | None = None,
) -> tuple[FrameMemory, Alternatives, Any]:
    cfg, rows = model.cfg, place.frame.shape[0]
    videos = features.embedding.shape[0]
    features = jax.tree.map(lambda leaf: _for_rows(leaf, rows), features)
    raw = features.embedding
    embedding = _conditioned(model, raw, state, prompts, place, training)
    if prompts is not None:
        # A mask says what the object is: its pointer is read from the frame as it is.
        embedding = _where(prompts.has_mask, raw, embedding)
    ask = partial(_ask, model, replace(features, embedding=embedding), place, training is not None)
    answer, alternatives = ask(prompts)
    told = None
    if training is not None and training.refine is not None:
        answer, told = training.refine(partial(ask, with_masks=False), answer)
    if prompts is not None:
        answer = _masks_as_output(model, answer, prompts)
    filled = answer.logits
    if cfg.tracking.fill_hole_area > 0 and training is None:
        filled = fill_holes(answer.logits, cfg.tracking.fill_hole_area)
    to_encode = _masks_for_memory(cfg, answer.logits, filled, prompts, videos, training is not None)
    memory = _encode(model, raw, to_encode, answer.object_score)
    seen = FrameMemory(memory, answer.pointer, filled, answer.iou, answer.object_score)
    return seen, alternatives, told


def _ask(
    model: "Sam2",
    features: "ImageFeatures",
    place: Place,
    train: bool,
    prompts: TrackPrompts | None,
    *,
    with_masks: bool = True,
) -> tuple[Answer, Alternatives]:
    """What the mask decoder says to prompts; `SAM2Base._forward_sam_heads`."""
    cfg = model.cfg
    masks, iou, tokens, score = _decode(model, features, prompts, with_masks)
    score = score[:, 0]
    if cfg.mask_decoder.pred_obj_scores:
        masks = _where(score > 0, masks, jnp.full_like(masks, NO_OBJ_SCORE))
    several = _wants_several(cfg, prompts, place)
    logits, best_iou, token = _best(cfg, masks, iou, tokens, several, train)
    pointers = make_pointers(model, token, score) if cfg.tracking.use_obj_ptrs_in_encoder else jnp.zeros_like(token)
    candidate = jnp.arange(masks.shape[1])[None]
    valid = jnp.where(several[:, None], candidate > 0, candidate == 0)
    return Answer(pointers, logits, best_iou, score), Alternatives(masks, iou, valid)


def _conditioned(
    model: "Sam2",
    raw: jax.Array,
    state: TrackState | None,
    prompts: TrackPrompts | None,
    place: Place,
    training: Training | None,
) -> jax.Array:
    """Features that know what is remembered; those of a row's first frame know that nothing is."""
    cfg = model.cfg
    first = raw + cfg.precision.compute(model.no_mem_embed[...])
    if state is None or cfg.num_maskmem == 0:
        return first if cfg.num_maskmem else raw
    tokens = memory_tokens(model, state, place.frame, place.num_frames, place.reverse, train=training is not None)
    size, width = raw.shape[1], raw.shape[-1]
    position = sine_encoding(size, size, width, temperature=cfg.position_encoding_temperature)
    remat, dropout = (training.remat, training.dropout) if training is not None else ("none", None)
    fused = model.memory_attention(raw, position, tokens, remat=remat, dropout=dropout)
    return fused if prompts is None else _where(place.initial & prompts.given, first, fused)


def _decode(
    model: "Sam2", features: "ImageFeatures", prompts: TrackPrompts | None, with_masks: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """All masks, their IoU and tokens, and the object score, for rows with any sort of prompt.

    Args:
      with_masks: false says that no row has a mask, which saves the work of looking at them.
    """
    encoder, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    rows = features.embedding.shape[0]
    if prompts is None:
        asked = Prompts(jnp.zeros((rows, 1, 2)), jnp.full((rows, 1), PADDING, jnp.int32))
        sparse, dense = encoder(asked)
        return decoder.predict(features.embedding, encoder.dense_positions(), sparse, dense, features.high_res)
    # Rows without points get one of padding, as upstream gives them.
    bare = jnp.all(prompts.labels == EMPTY, axis=1)
    labels = prompts.labels.at[:, 0].set(jnp.where(bare, PADDING, prompts.labels[:, 0]))
    given = prompts.logits
    if model.mask_downsample is not None and with_masks:
        lowered = model.mask_downsample(prompts.mask[..., None].astype(jnp.float32))[..., 0]
        given = _where(prompts.has_mask, lowered.astype(jnp.float32), given)
    asked = Prompts(prompts.points, labels, given)
    sparse, dense = encoder(asked)
    no_mask = jnp.broadcast_to(encoder.no_mask_embed[...].astype(dense.dtype), dense.shape)
    dense = _where(prompts.has_mask | prompts.has_logits, dense, no_mask)
    valid = encoder.valid_tokens(asked)
    return decoder.predict(features.embedding, encoder.dense_positions(), sparse, dense, features.high_res, valid)


def _wants_several(cfg: Sam2Config, prompts: TrackPrompts | None, place: Place) -> jax.Array:
    """Whether a row's prompt is ambiguous, so that several masks are predicted. Shapes: -> bool [B]."""
    settings = cfg.tracking
    points = jnp.zeros_like(place.frame) if prompts is None else jnp.sum(prompts.labels != EMPTY, axis=1)
    few = (points >= settings.multimask_min_pt_num) & (points <= settings.multimask_max_pt_num)
    initial = place.initial & (points > 0)
    several = few & (initial | settings.multimask_output_for_tracking) & settings.multimask_output_in_sam
    return several if prompts is None else several & ~prompts.has_mask


def _best(
    cfg: Sam2Config, masks: jax.Array, iou: jax.Array, tokens: jax.Array, several: jax.Array, train: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mask of each row, its IoU and its token. Shapes: -> [B, H, W], [B], [B, D]."""
    options = cfg.mask_decoder
    mask, quality = best_of(masks[:, 1:], iou[:, 1:])
    single, single_quality = masks[:, :1], iou[:, :1]
    if options.dynamic_multimask_via_stability and not train:
        single, single_quality = stable_or_best(masks, iou, options)
    token = tokens[:, 0]
    if options.use_multimask_token_for_obj_ptr:
        best = jnp.argmax(iou[:, 1:], axis=1)
        token = _where(several, jnp.take_along_axis(tokens[:, 1:], best[:, None, None], axis=1)[:, 0], token)
    return _where(several, mask, single)[:, 0], _where(several, quality, single_quality)[:, 0], token


def _masks_as_output(model: "Sam2", answer: Answer, prompts: TrackPrompts) -> Answer:
    """The answer, with the given mask itself in rows that have one; `SAM2Base._use_mask_as_output`."""
    low = model.cfg.low_res_size
    logits = resize(_sharp(prompts)[..., None], (low, low), mode="bilinear", antialias=True)[..., 0]
    present = jnp.any(prompts.mask, axis=(1, 2)).astype(jnp.float32)
    pointer = answer.pointer
    if model.cfg.mask_decoder.pred_obj_scores:
        pointer = mix_absent(model, pointer, present)
    score = _MASK_SCALE * present + _MASK_BIAS
    given = Answer(pointer, logits, jnp.ones_like(answer.iou), score)
    return jax.tree.map(lambda a, b: _where(prompts.has_mask, a, b), given, answer)


def _sharp(prompts: TrackPrompts) -> jax.Array:
    """Given masks as logits. Shapes: -> [B, S, S]."""
    return prompts.mask.astype(jnp.float32) * _MASK_SCALE + _MASK_BIAS


def _masks_for_memory(
    cfg: Sam2Config, logits: jax.Array, filled: jax.Array, prompts: TrackPrompts | None, videos: int, train: bool
) -> jax.Array:
    """What the memory encoder gets. Shapes: logits and filled [B, H, W] -> float32 [B, S, S].

    Prompted frames are remembered as upstream's `propagate_in_video_preflight` does it, from the low-resolution mask
    that was given out; in training from a given mask in full size.
    """
    settings, size = cfg.tracking, cfg.image_size
    if prompts is not None and not train:
        logits = _where(prompts.given, filled, logits)
    high = resize(logits[..., None], (size, size), mode="bilinear")[..., 0]
    if prompts is not None and train:
        high = _where(prompts.has_mask, _sharp(prompts), high)
    if settings.non_overlap_masks_for_mem_enc and not train:
        high = without_overlap(high, videos)
    masks = jax.nn.sigmoid(high)
    if settings.binarize_mask_from_pts_for_mem_enc and prompts is not None and not train:
        masks = _where(prompts.given, (high > 0).astype(masks.dtype), masks)
    return masks * settings.sigmoid_scale_for_mem_enc + settings.sigmoid_bias_for_mem_enc


def _encode(model: "Sam2", raw: jax.Array, masks: jax.Array, object_score: jax.Array) -> jax.Array:
    """The memory of a frame, `SAM2Base._encode_new_memory`.

    Shapes: raw [B, h, w, D], masks float32 [B, S, S], object_score [B] -> [B, h, w, M].
    """
    memory = model.memory_encoder(raw, masks)
    if model.no_obj_embed_spatial is not None:
        absent = (object_score <= 0)[:, None, None, None]
        memory = memory + absent * model.no_obj_embed_spatial[...].astype(memory.dtype)
    return constrain(memory, "batch", None, None, None)


def _forget_around(cfg: Sam2Config, state: TrackState, rows: jax.Array, frame: jax.Array) -> TrackState:
    if not cfg.tracking.clear_non_cond_mem_around_input:
        return state
    reach = cfg.tracking.memory_temporal_stride_for_eval * cfg.num_maskmem
    return forget_tracked(state, rows, frame, reach=reach)


def _for_rows(leaf: jax.Array, rows: int) -> jax.Array:
    """Features of V videos for the rows of their objects. Shapes: [V, ...] -> [B, ...]."""
    videos = leaf.shape[0]
    if rows % videos:
        raise ValueError(f"{rows} rows for the frames of {videos} videos: give as many rows for each video")
    leaf = jnp.broadcast_to(leaf[:, None], (videos, rows // videos, *leaf.shape[1:])).reshape(rows, *leaf.shape[1:])
    return constrain(leaf, "batch", *(None,) * (leaf.ndim - 1))


def _where(rows: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`a` in the rows that are chosen, `b` in the others. Shapes: rows bool [B], a and b [B, ...]."""
    return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
