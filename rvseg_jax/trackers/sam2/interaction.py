"""Training as with a user who corrects: several prompted frames of a clip, and clicks where the masks are wrong.

Source: `prepare_prompt_inputs` and `_iter_correct_pt_sampling` of training/model/sam2.py of the original.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rvseg_jax.layers import stack
from rvseg_jax.models.sam2.prompt_encoder import EMPTY
from rvseg_jax.models.sam2.tracking import Answer, Ask, Place, Training, observe_training
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.models.sam2.tracking_state import TrackState, empty_state, remember
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import platform
from rvseg_jax.trackers.sam2.clips import ClipOutput, Corrections, encoded, error_clicks, outputs

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import Sam2


@dataclass(frozen=True)
class InteractionConfig:
    """Prompts besides one on the first frame, under upstream's names without `_for_train`; the defaults are none.

    Attributes:
      num_init_cond_frames: frames of a clip that are prompted, the first and others by chance; between one and so
        many if `rand_init_cond_frames`.
      num_frames_to_correct: frames of which masks are corrected by clicks, the prompted ones and others by chance; any
        number from that of the prompted ones on if `rand_frames_to_correct`. Objects given by masks are not corrected.
      num_correction_pt_per_frame: clicks of a correction, one after the other.
      prob_to_sample_from_gt: how often a click falls anywhere on the object instead of where the mask is wrong.
      add_all_frames_to_correct_as_cond: frames that are corrected count as prompted from then on.
    """

    num_init_cond_frames: int = 1
    rand_init_cond_frames: bool = True
    num_frames_to_correct: int = 1
    rand_frames_to_correct: bool = False
    num_correction_pt_per_frame: int = 0
    prob_to_sample_from_gt: float = 0.0
    add_all_frames_to_correct_as_cond: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_init_cond_frames <= self.num_frames_to_correct:
            raise ValueError(
                f"num_init_cond_frames {self.num_init_cond_frames} and num_frames_to_correct "
                f"{self.num_frames_to_correct}: give 1 <= prompted <= corrected, for every prompted frame is corrected"
            )
        if self.num_correction_pt_per_frame < 0 or not 0 <= self.prob_to_sample_from_gt <= 1:
            raise ValueError(
                f"num_correction_pt_per_frame {self.num_correction_pt_per_frame} must be at least 0, and "
                f"prob_to_sample_from_gt {self.prob_to_sample_from_gt} in 0..1"
            )

    @classmethod
    def published(cls) -> "InteractionConfig":
        """Of upstream's fine-tuning recipe."""
        return cls(
            num_init_cond_frames=2,
            num_frames_to_correct=2,
            rand_frames_to_correct=True,
            num_correction_pt_per_frame=7,
            prob_to_sample_from_gt=0.1,
            add_all_frames_to_correct_as_cond=True,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipPlan:
    """What chance decides about clips of T frames of V videos with B rows, step by step in the order of work.

    Attributes:
      order: int [T, V], the frame of each step: the prompted ones first, then the others in time.
      initial: bool [T, B], whether the row has a prompt in the step.
      corrected: bool [T, B], whether its mask is corrected.
      prompts: of the first steps, with a leading axis [P]; they count where `initial` is true.
      clicks: points float32 [T, C, B, 2] and labels int [T, C, B]; None draws them by `key`.
      key: for clicks and dropout.
    """

    order: jax.Array
    initial: jax.Array
    corrected: jax.Array
    prompts: TrackPrompts
    clicks: tuple[jax.Array, jax.Array] | None
    key: jax.Array

    def in_order(self, x: jax.Array) -> jax.Array:
        """What each row has in the frame of each step. Shapes: x [T, B, ...] -> [T, B, ...]."""
        rows = x.shape[1]
        return x[jnp.repeat(self.order, rows // self.order.shape[1], axis=1), jnp.arange(rows)]


def draw_plan(
    key: jax.Array,
    cfg: InteractionConfig,
    masks: jax.Array,
    videos: int,
    prompts_of: Callable[[int, jax.Array], TrackPrompts],
) -> ClipPlan:
    """Draws a plan for clips.

    Shapes: masks bool [T, B, S, S].

    Args:
      prompts_of: `prompts_of(step, masks [B, S, S])`, the prompts of the frames that `step` is about. Rows that are
        given by masks have to be the same in each.
    """
    frames, rows = masks.shape[:2]
    most = min(cfg.num_init_cond_frames, frames)
    own, first, second, other = jax.random.split(key, 4)
    # In this order frames are prompted, and corrected, as far as chance goes.
    rank = jax.vmap(lambda one: jax.random.permutation(one, frames - 1))(jax.random.split(other, videos)) + 1
    rank = jnp.concatenate([jnp.zeros((videos, 1), rank.dtype), rank], axis=1)
    initial = jnp.full((videos,), most)
    if cfg.rand_init_cond_frames:
        initial = jax.random.randint(first, (videos,), 1, most + 1)
    corrected = jnp.full((videos,), min(cfg.num_frames_to_correct, frames))
    if cfg.rand_frames_to_correct:
        corrected = jax.random.randint(second, (videos,), initial, corrected + 1)
    time = jnp.arange(frames)
    order = jnp.argsort(jnp.where(rank < initial[:, None], rank, frames + time), axis=1)
    ranks = jnp.repeat(jnp.take_along_axis(rank, order, axis=1).T, rows // videos, axis=1)
    counts = (jnp.repeat(count, rows // videos) for count in (initial, corrected))
    is_initial, is_corrected = (ranks < count for count in counts)
    plan = ClipPlan(order.T, is_initial, is_corrected, TrackPrompts(*(jnp.zeros(0),) * 6), None, own)
    seen = plan.in_order(masks)
    each = [prompts_of(step, seen[step]) for step in range(most)]
    prompts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return replace(plan, prompts=prompts, corrected=is_corrected & ~prompts.has_mask[0])


def track_interactively(
    model: "Sam2",
    images: jax.Array,
    masks: jax.Array,
    plan: ClipPlan,
    cfg: InteractionConfig,
    *,
    remat: stack.Remat = "full",
) -> ClipOutput:
    """Follows objects through a clip as planned, the prompted frames first.

    Shapes: images [T, V, S, S, 3], normalised, masks bool [T, B, S, S] -> output in the order of the plan.

    Args:
      remat: as of `track_clip`.
    """
    frames, rows = masks.shape[:2]
    prompted = plan.prompts.labels.shape[0]
    features = encoded(model, images, remat)
    videos = jnp.arange(images.shape[1])
    features = jax.tree.map(lambda leaf: leaf[plan.order, videos], features)
    kept = jnp.dtype(model.cfg.precision.compute_dtype).name
    slots = min(max(cfg.num_init_cond_frames, cfg.num_frames_to_correct), frames)
    state = empty_state(model.cfg, rows, prompted_slots=slots, memory_dtype=kept)
    keys = jax.random.split(plan.key, frames)
    # A step for each frame; what follows the prompted ones is one program.
    inputs = (features, plan.in_order(masks), plan.order, plan.initial, plan.corrected, plan.clicks, keys)
    step: Callable[..., tuple[TrackState, ClipOutput]] = partial(_step, model, cfg, frames)
    if remat != "none":
        policy = stack.REMAT_POLICIES[remat]
        step = jax.checkpoint(step, policy=policy, prevent_cse=False, static_argnums=(3,))
    found = []
    for index in range(prompted):
        here = jax.tree.map(lambda leaf, index=index: leaf[index], (plan.prompts, inputs))
        state, one = step(state, here[0], here[1], index == 0)
        found.append(one)
    seen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    if prompted == frames:
        return seen

    def later(state: TrackState, here: Any) -> tuple[TrackState, ClipOutput]:
        return step(state, None, here, False)

    rest = jax.tree.map(lambda leaf: leaf[prompted:], inputs)
    _, rest = jax.lax.scan(later, state, rest, unroll=platform() == "cpu" and remat == "none")
    return jax.tree.map(lambda one, others: jnp.concatenate([one, others]), seen, rest)


def _step(
    model: "Sam2",
    cfg: InteractionConfig,
    frames: int,
    state: TrackState,
    prompts: TrackPrompts | None,
    inputs: Any,
    first: bool,
) -> tuple[TrackState, ClipOutput]:
    """A frame of every video: prompted if it is to be, corrected if it is to be, and remembered."""
    features, truth, order, initial, corrected, clicks, key = inputs
    rows = truth.shape[0]
    frame = jnp.repeat(order, rows // order.shape[0])
    place = replace(Place.of(rows, 0, num_frames=frames), frame=frame, initial=initial)
    if prompts is not None:
        prompts = replace(
            prompts,
            labels=jnp.where(initial[:, None], prompts.labels, EMPTY),
            mask=prompts.mask & initial[:, None, None],
            has_mask=prompts.has_mask & initial,
        )
    dropout, clicking = jax.random.split(key)
    refine = None
    if cfg.num_correction_pt_per_frame:
        refine = partial(_refined, cfg, prompts, truth, corrected, clicks, clicking)
    dropping = dropout if model.cfg.memory_attention.dropout else None
    training = Training(dropout=dropping, refine=refine)
    seen, alternatives, told = observe_training(model, features, None if first else state, prompts, place, training)
    found = outputs(seen, alternatives)
    if told is not None:
        score, corrections = told
        found = replace(found, object_score=score, corrections=corrections)
    as_prompted = initial | (corrected if cfg.add_all_frames_to_correct_as_cond else False)
    state = remember(state, seen, frame, as_prompted=as_prompted, as_tracked=~as_prompted)
    return state, found


def _refined(
    cfg: InteractionConfig,
    prompts: TrackPrompts | None,
    truth: jax.Array,
    rows: jax.Array,
    clicks: tuple[jax.Array, jax.Array] | None,
    key: jax.Array,
    ask: Ask,
    answer: Answer,
) -> tuple[Answer, tuple[jax.Array, Corrections]]:
    """The answer after clicks in `rows`, each with the mask before it as a prompt; and what was said on the way.

    Returns:
      The last answer, the object score of the first, and the corrections.
    """
    batch, count, size = truth.shape[0], cfg.num_correction_pt_per_frame, truth.shape[-1]
    given = jnp.zeros((batch, 2, 2)) if prompts is None else prompts.points
    kinds = jnp.full((batch, 2), EMPTY, jnp.int32) if prompts is None else prompts.labels
    points = jnp.concatenate([given, jnp.zeros((batch, count, 2))], axis=1)
    labels = jnp.concatenate([kinds, jnp.full((batch, count), EMPTY, jnp.int32)], axis=1)
    nowhere, nothing = jnp.zeros((batch,), jnp.bool_), jnp.zeros((batch, 1, 1), jnp.bool_)

    def click(carry: tuple[Answer, jax.Array, jax.Array], one: Any) -> tuple[Any, Any]:
        answer, points, labels = carry
        slot, drawing, wanted = one
        where, what = wanted if wanted is not None else _drawn(cfg, drawing, truth, answer.logits, size)
        points, labels = points.at[:, slot].set(where), labels.at[:, slot].set(what)
        asked = TrackPrompts(points, labels, nothing, nowhere, answer.logits, rows)
        found, alternatives = ask(asked)
        answer = jax.tree.map(lambda new, old: jnp.where(_beside(rows, new), new, old), found, answer)
        return (answer, points, labels), (alternatives, found.object_score)

    def corrected() -> tuple[Answer, Any]:
        each = (given.shape[1] + jnp.arange(count), jax.random.split(key, count), clicks)
        (last, _, _), told = jax.lax.scan(click, (answer, points, labels), each, unroll=platform() == "cpu")
        return last, told

    shapes = jax.eval_shape(corrected)[1]

    def untouched() -> tuple[Answer, Any]:
        return answer, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    last, (alternatives, scores) = jax.lax.cond(jnp.any(rows), corrected, untouched)
    return last, (answer.object_score, Corrections(alternatives, scores, rows))


def _drawn(
    cfg: InteractionConfig, key: jax.Array, truth: jax.Array, logits: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    own, anywhere = jax.random.split(key)
    predicted = resize(logits[..., None], (size, size), mode="bilinear")[..., 0] > 0
    freely = jax.random.bernoulli(anywhere, cfg.prob_to_sample_from_gt, truth.shape[:1])
    return error_clicks(own, truth, predicted & ~freely[:, None, None])


def _beside(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    return rows.reshape(-1, *(1,) * (leaf.ndim - 1))
