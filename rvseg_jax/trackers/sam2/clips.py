"""SAM 2 on a training clip: prompted in the first frame, followed through the others, and the loss of it all.

Source: training/model/sam2.py of the original, with one prompted frame and without correction clicks, for which see
`interaction`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from rvseg_jax.layers import stack
from rvseg_jax.models.sam2.model import ImageFeatures
from rvseg_jax.models.sam2.prompt_encoder import BACKGROUND, BOTTOM_RIGHT, EMPTY, FOREGROUND, TOP_LEFT
from rvseg_jax.models.sam2.tracking import Alternatives, Place, Training, observe_training
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.models.sam2.tracking_state import FrameMemory, TrackState, empty_state, remember
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import platform
from rvseg_jax.trackers.sam2.losses import TrackerLossConfig, frame_losses

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import Sam2

PromptKind = Literal["mask", "click", "box"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Corrections:
    """What was predicted after each of C clicks that correct a frame.

    Shapes: alternatives of [C, B, M, ...], object_score [C, B], made bool [B], with a leading [T] in a clip.

    Attributes:
      made: rows whose masks were corrected; those of the others mean nothing.
    """

    alternatives: Alternatives
    object_score: jax.Array
    made: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipOutput:
    """What was predicted of every frame of a clip.

    Shapes: logits [T, B, H, W], iou [T, B], object_score [T, B], alternatives of [T, B, M, ...].

    Attributes:
      logits, iou: of the mask that was chosen in the end, at a quarter of the image size.
      object_score, alternatives: of all masks that were predicted, before any correction.
      corrections: what was predicted after clicks, in training with them.
    """

    logits: jax.Array
    iou: jax.Array
    object_score: jax.Array
    alternatives: Alternatives
    corrections: Corrections | None = None


def track_clip(
    model: "Sam2",
    images: jax.Array,
    prompts: TrackPrompts,
    *,
    remat: stack.Remat = "full",
    unroll: bool | None = None,
) -> ClipOutput:
    """Follows objects through a clip from prompts on its first frame; memory is carried by a scan over the frames.

    Shapes: images [T, V, S, S, 3], normalised, prompts of B rows, B a multiple of V.

    Args:
      remat: what the backward pass recomputes: "full" keeps only the carried memory of each frame, and the images
        are encoded anew, one frame of all videos at a time.
      unroll: lay the frames out one after the other instead of in a loop, which takes longer to compile. None does so
        on CPU without `remat`, as XLA's convolutions are 30 to 50 times slower there inside a loop.

    Raises:
      ValueError: if the clip has no frame.
    """
    frames, rows = images.shape[0], prompts.labels.shape[0]
    if frames < 1:
        raise ValueError(f"images {images.shape} must have at least one frame")
    features = encoded(model, images, remat)
    # Nothing is rounded on its way from frame to frame, or gradients would be.
    kept = jnp.dtype(model.cfg.precision.compute_dtype).name
    state = empty_state(model.cfg, rows, memory_dtype=kept)
    place = Place.of(rows, 0, num_frames=frames)
    everywhere = jnp.ones((rows,), jnp.bool_)
    start = jax.tree.map(lambda leaf: leaf[0], features)
    seen, alternatives, _ = observe_training(model, start, None, prompts, place, Training())
    state = remember(state, seen, place.frame, as_prompted=everywhere, as_tracked=~everywhere)
    first = outputs(seen, alternatives)

    def step(state: TrackState, inputs: tuple[jax.Array, ImageFeatures]) -> tuple[TrackState, ClipOutput]:
        index, current = inputs
        here = replace(place, frame=jnp.full((rows,), index, jnp.int32))
        seen, alternatives, _ = observe_training(model, current, state, None, here, Training())
        state = remember(state, seen, here.frame, as_prompted=~everywhere, as_tracked=everywhere)
        return state, outputs(seen, alternatives)

    if remat != "none":
        step = jax.checkpoint(step, policy=stack.REMAT_POLICIES[remat], prevent_cse=False)
    later = (jnp.arange(1, frames), jax.tree.map(lambda leaf: leaf[1:], features))
    flat = platform() == "cpu" and remat == "none" if unroll is None else unroll
    _, rest = jax.lax.scan(step, state, later, unroll=flat)
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first, rest)


def clip_losses(
    cfg: TrackerLossConfig, output: ClipOutput, masks: jax.Array, supervised: jax.Array
) -> dict[str, jax.Array]:
    """The four losses of a clip and their weighted total: sums over frames, divided by the number of objects.

    Each answer to a correction counts as much as the first answer of its frame.

    Predictions are enlarged to the size of the masks, one frame at a time.

    Shapes: masks [T, B, H, W], supervised bool [T, B] -> float32 [] each.

    Args:
      supervised: False for rows without truth in a frame; the first frame of rows that were given their mask teaches
        nothing, see `taught`.

    Source: `MultiStepMultiMasksAndIous.forward`.
    """
    objects = jnp.maximum(jnp.sum(jnp.any(supervised, axis=0)), 1)

    @jax.checkpoint
    def of_answer(found: Alternatives, score: jax.Array, truth: jax.Array, counted: jax.Array) -> dict[str, jax.Array]:
        large = resize(jnp.moveaxis(found.logits, 1, -1), (truth.shape[1], truth.shape[2]), mode="bilinear")
        logits = jnp.moveaxis(large, -1, 1)
        return frame_losses(cfg, logits, found.iou, found.valid, score, truth, counted)

    def of_frame(inputs: tuple[ClipOutput, jax.Array, jax.Array]) -> dict[str, jax.Array]:
        frame, truth, counted = inputs
        losses = of_answer(frame.alternatives, frame.object_score, truth, counted)
        if (later := frame.corrections) is None:
            return losses
        each = jax.lax.map(
            lambda answer: of_answer(*answer, truth, counted & later.made), (later.alternatives, later.object_score)
        )
        return jax.tree.map(lambda one, others: one + others.sum(), losses, each)

    losses = jax.lax.map(of_frame, (output, masks, supervised))
    return jax.tree.map(lambda value: jnp.sum(value) / objects, losses)


def taught(prompts: TrackPrompts, supervised: jax.Array) -> jax.Array:
    """`supervised` without the first frame of rows whose mask was given. Shapes: supervised bool [T, B] -> [T, B]."""
    return supervised.at[0].set(supervised[0] & ~prompts.has_mask)


def simulated_prompts(key: jax.Array, masks: jax.Array, kind: PromptKind, *, low_res_size: int) -> TrackPrompts:
    """Prompts that a user might give for masks: the mask, a click somewhere on it, or a box around it.

    Shapes: masks bool [B, S, S] in the size of the model's image.

    Args:
      key: for clicks, which fall on every pixel of the object alike, and for boxes, whose sides move by up to a tenth
        of the object's size and 20 px. An absent object is clicked on as background.
      low_res_size: side of the model's low-resolution masks.

    Source: `sample_random_points_from_errors` and `sample_box_points`, sam2/modeling/sam2_utils.py.
    """
    rows = masks.shape[0]
    points = jnp.zeros((rows, 2, 2), jnp.float32)
    labels = jnp.full((rows, 2), EMPTY, jnp.int32)
    if kind == "click":
        where, what = error_clicks(key, masks, jnp.zeros_like(masks))
        points, labels = points.at[:, 0].set(where), labels.at[:, 0].set(what)
    elif kind == "box":
        points = _boxes(key, masks).reshape(rows, 2, 2)
        labels = jnp.broadcast_to(jnp.asarray([TOP_LEFT, BOTTOM_RIGHT], jnp.int32), labels.shape)
    given = jnp.full((rows,), kind == "mask", jnp.bool_)
    nothing = jnp.zeros((rows, low_res_size, low_res_size), jnp.float32)
    return TrackPrompts(points, labels, masks & given[:, None, None], given, nothing, jnp.zeros_like(given))


def error_clicks(key: jax.Array, masks: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A click on each object where the prediction is wrong, every such pixel alike; where it is right, on background.

    Shapes: masks, predicted bool [B, S, S] -> points float32 [B, 2] as (x, y), labels int [B].

    Source: `sample_random_points_from_errors`, sam2/modeling/sam2_utils.py.
    """
    rows, size = masks.shape[0], masks.shape[-1]
    wrong = masks ^ predicted
    right = ~jnp.any(wrong, axis=(1, 2), keepdims=True)
    allowed = (wrong | (right & ~masks)).reshape(rows, -1)
    noise = jax.random.uniform(key, masks.shape, minval=1e-6).reshape(rows, -1)
    cell = jnp.argmax(jnp.where(allowed, noise, 0.0), axis=1)
    missed = jnp.take_along_axis((masks & wrong).reshape(rows, -1), cell[:, None], axis=1)[:, 0]
    points = jnp.stack([cell % size, cell // size], axis=1).astype(jnp.float32)
    return points, jnp.where(missed, FOREGROUND, BACKGROUND)


def _boxes(key: jax.Array, masks: jax.Array) -> jax.Array:
    """Boxes around masks, a little off. Shapes: masks bool [B, S, S] -> float32 [B, 4] as xyxy."""
    size = masks.shape[-1]

    def ends(occupied: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = size - 1 - jnp.argmax(occupied[:, ::-1], axis=1)
        return jnp.argmax(occupied, axis=1).astype(jnp.float32), last.astype(jnp.float32)

    (left, right), (top, bottom) = ends(jnp.any(masks, axis=1)), ends(jnp.any(masks, axis=2))
    box = jnp.stack([left, top, right, bottom], axis=1)
    reach = jnp.minimum(0.1 * jnp.stack([right - left, bottom - top], axis=1), 20.0)
    noise = jax.random.uniform(key, box.shape, minval=-1.0, maxval=1.0)
    return jnp.clip(box + noise * jnp.tile(reach, (1, 2)), 0, size - 1)


def encoded(model: "Sam2", images: jax.Array, remat: stack.Remat) -> ImageFeatures:
    """Features of all frames, frame by frame where the backward pass computes them anew.

    Shapes: images [T, V, S, S, 3] -> leaves [T, V, ...].
    """

    def encode(frame: jax.Array) -> ImageFeatures:
        return model.encode_image(frame)

    if remat == "none":
        features = encode(images.reshape(-1, *images.shape[2:]))
        return jax.tree.map(lambda leaf: leaf.reshape(*images.shape[:2], *leaf.shape[1:]), features)
    encode = jax.checkpoint(encode, policy=stack.REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.map(encode, images)


def outputs(seen: FrameMemory, alternatives: Alternatives) -> ClipOutput:
    """A frame as it counts in a clip."""
    return ClipOutput(seen.logits, seen.iou, seen.object_score, alternatives)
