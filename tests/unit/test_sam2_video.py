"""Following objects by SAM 2: bounded state, no compile but the first, and rows that know nothing of each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import ImageFeatures, Sam2
from rvseg_jax.models.sam2.tracking import NO_OBJ_SCORE, Place
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts
from rvseg_jax.models.sam2.tracking_state import empty_state

CFG = replace(Sam2Config.tiny(), tracking=replace(Sam2Config.tiny().tracking, memory_dtype="float32", fill_hole_area=4))
CLICK = RowPrompt(np.float32([[60, 40]]), np.int32([1]))
BOX = RowPrompt(np.float32([[10, 20], [80, 90], [40, 50]]), np.int32([2, 3, 1]))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def programs(random_leaves) -> TrackingPrograms:
    graph, state = nnx.split(nnx.eval_shape(lambda: Sam2(CFG, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, random_leaves(state))
    # Random weights predict no object, and then nothing would depend on anything.
    head = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    head.bias[...] = jnp.full_like(head.bias[...], 20.0)
    return TrackingPrograms(model)


def features(*seeds: int) -> ImageFeatures:
    """Features of one frame of each video."""
    side, width = CFG.image_embedding_size, CFG.d_model

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(np.stack([np.random.default_rng(s).standard_normal(shape) for s in seeds]), jnp.float32)

    high = draw(4 * side, 4 * side, width // 8), draw(2 * side, 2 * side, width // 4)
    return ImageFeatures(draw(side, side, width), high)


def started(programs, prompts, frame=0, frames=1, rows=None, seeds=(0,), **state_options):
    """A state in which rows were prompted on a frame."""
    rows = len(prompts) if rows is None else rows
    batch = batched_prompts(CFG, [*prompts, *[None] * (rows - len(prompts))], least_points=4)
    place = Place.of(rows, frame, num_frames=frames)
    seen = programs.observe(features(*seeds), None, batch, place)
    state = empty_state(CFG, rows, prompted_slots=2, **state_options)
    return programs.settle(state, seen, place, batch.given), seen


def test_two_hundred_frames_cost_no_memory_and_no_compile(programs):
    state, _ = started(programs, [CLICK, BOX], frames=201)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    state, _ = programs.track_step(state, features(1), Place.of(2, 1, num_frames=201))
    compiles = dict(programs.compiles)
    frame_features = [features(seed) for seed in range(8)]
    for frame in range(2, 201):
        state, seen = programs.track_step(state, frame_features[frame % 8], Place.of(2, frame, num_frames=201))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == sum(
        np.prod(shape) * dtype.itemsize
        for shape, dtype in jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    )
    # Backwards, with other prompts in the same bucket, on another frame, of a video of unknown length.
    state, _ = programs.track_step(state, features(3), Place.of(2, 150, reverse=True))
    started(programs, [BOX, CLICK], frame=7)
    mask = np.zeros((128, 128), bool)
    mask[30:60, 20:90] = True
    started(programs, [RowPrompt(mask=mask), None], frame=3, frames=9)
    assert dict(programs.compiles) == compiles
    assert np.isfinite(np.asarray(seen.logits)).all() and float(jnp.std(seen.logits)) > 1e-3
    assert (np.asarray(seen.logits) != NO_OBJ_SCORE).all()


def test_rows_do_not_see_each_other(programs):
    both, seen_both = started(programs, [CLICK, BOX], frames=9)
    one, seen_one = started(programs, [CLICK, None], frames=9)
    np.testing.assert_allclose(seen_one.logits[0], seen_both.logits[0], **CLOSE)
    for frame in (1, 2, 3):
        both, seen_both = programs.track_step(both, features(frame), Place.of(2, frame, num_frames=9))
        one, seen_one = programs.track_step(one, features(frame), Place.of(2, frame, num_frames=9))
        np.testing.assert_allclose(seen_one.logits[0], seen_both.logits[0], **CLOSE)
        assert (np.asarray(seen_one.logits[1]) == NO_OBJ_SCORE).all(), "a row without an object is empty"
    assert np.asarray(one.active).tolist() == [True, False]
    assert (np.asarray(one.memory_frame[1]) == -1).all(), "and nothing is remembered of it"


@pytest.mark.slow
def test_two_videos_in_one_batch_are_as_alone(programs):
    both, seen = started(programs, [CLICK, BOX], seeds=(0, 10), frames=9)
    both, seen = programs.track_step(both, features(1, 11), Place.of(2, 1, num_frames=9))
    for row, (prompt, seeds) in enumerate(((CLICK, (0, 1)), (BOX, (10, 11)))):
        alone, _ = started(programs, [prompt, None], seeds=seeds[:1], frames=9)
        _, one = programs.track_step(alone, features(seeds[1]), Place.of(2, 1, num_frames=9))
        np.testing.assert_allclose(seen.logits[row], one.logits[0], **CLOSE)
    with pytest.raises(ValueError, match="as many rows"):
        programs.track_step(both, features(1, 2, 3), Place.of(2, 1))


def test_backwards_is_forwards_in_a_mirror(programs):
    ahead, _ = started(programs, [CLICK, BOX], frame=5, frames=11)
    back = ahead
    for step in (1, 2, 3):
        ahead, one = programs.track_step(ahead, features(step), Place.of(2, 5 + step, num_frames=11))
        back, two = programs.track_step(back, features(step), Place.of(2, 5 - step, num_frames=11, reverse=True))
        np.testing.assert_allclose(one.logits, two.logits, **CLOSE)
        np.testing.assert_allclose(one.pointer, two.pointer, **CLOSE)


def test_prompted_frames_give_out_what_they_gave(programs):
    state, seen = started(programs, [CLICK, BOX], frames=9)
    state, _ = programs.track_step(state, features(1), Place.of(2, 1, num_frames=9))
    again, given = programs.track_step(state, features(4), Place.of(2, 0, num_frames=9))
    np.testing.assert_array_equal(given.logits, seen.logits)
    np.testing.assert_array_equal(given.object_score, seen.object_score)
    np.testing.assert_array_equal(again.memory_frame, state.memory_frame)


def test_a_late_object_joins_while_another_is_tracked(programs):
    state, _ = started(programs, [CLICK, None], frames=9)
    state, _ = programs.track_step(state, features(1), Place.of(2, 1, num_frames=9))
    prompts = batched_prompts(CFG, [None, BOX], least_points=4)
    with_prompt, seen = programs.track_step(state, features(2), Place.of(2, 2, num_frames=9), prompts)
    plain, alone = programs.track_step(state, features(2), Place.of(2, 2, num_frames=9))
    np.testing.assert_allclose(seen.logits[0], alone.logits[0], **CLOSE)
    assert (np.asarray(alone.logits[1]) == NO_OBJ_SCORE).all() and (np.asarray(seen.logits[1]) != NO_OBJ_SCORE).all()
    assert np.asarray(with_prompt.prompted.frame).tolist() == [[0, -1], [2, -1]]
    fresh = programs.observe(features(2), None, prompts, Place.of(2, 2, num_frames=9))
    np.testing.assert_allclose(seen.logits[1], fresh.logits[1], **CLOSE)


def test_a_mask_is_its_own_answer_and_an_empty_one_says_absent(programs):
    mask = np.zeros((128, 128), bool)
    mask[32:64, 16:96] = True
    state, seen = started(programs, [RowPrompt(mask=mask), RowPrompt(mask=np.zeros_like(mask))], frames=9)
    np.testing.assert_array_equal(np.asarray(seen.logits[0] > 0), mask[::4, ::4])
    assert np.asarray(seen.object_score).tolist() == [10.0, -10.0] and np.asarray(seen.iou).tolist() == [1.0, 1.0]
    absent = programs.parameters["no_obj_ptr"][...]
    np.testing.assert_allclose(seen.pointer[1], absent, rtol=1e-6)
    assert np.abs(np.asarray(seen.pointer[0]) - np.asarray(absent)).max() > 1e-2


def test_padding_points_are_no_points(programs):
    narrow = batched_prompts(CFG, [CLICK, BOX], least_points=4)
    wide = batched_prompts(CFG, [CLICK, BOX], least_points=16)
    place = Place.of(2, 0, num_frames=9)
    one, two = (programs.observe(features(0), None, prompts, place) for prompts in (narrow, wide))
    np.testing.assert_allclose(one.logits, two.logits, **CLOSE)
    np.testing.assert_allclose(one.memory, two.memory, **CLOSE)
