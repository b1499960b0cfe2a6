"""Rules of SAM 2's memory against plain restatements: what is remembered, what is looked up, what is filled."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.hole_filling import fill_holes
from rvseg_jax.models.sam2.object_pointers import sine_of_distance
from rvseg_jax.models.sam2.tracking import without_overlap
from rvseg_jax.models.sam2.tracking_memory import closest, steps_back
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts, scaled_mask, scaled_points
from rvseg_jax.models.sam2.tracking_state import (
    FrameMemory,
    TrackState,
    empty_state,
    forget_tracked,
    frame_memory,
    grown,
    remember,
    without_rows,
)

CFG = Sam2Config.tiny()


def selected(frames: list[int], here: int, most: int) -> set[int]:
    """Upstream's rule in words: nearest before, nearest from here on, then by distance in the order of insertion."""
    if most == -1 or len(frames) <= most:
        return set(frames)
    kept = [max((t for t in frames if t < here), default=None), min((t for t in frames if t >= here), default=None)]
    kept = [t for t in kept if t is not None]
    rest = sorted((t for t in frames if t not in kept), key=lambda t: abs(t - here))
    return {*kept, *rest[: most - len(kept)]}


@pytest.mark.parametrize("most", [-1, 2, 3, 4])
def test_closest_prompted_frames(most):
    rng = np.random.default_rng(most + 1)
    frames, here = [], []
    for _ in range(200):
        count = rng.integers(0, 7)
        held = rng.permutation(12)[:count]
        frames.append(np.concatenate([held, np.full(6 - count, -1)]) if count < 6 else held[:6])
        here.append(rng.integers(0, 12))
    found = np.asarray(jax.jit(closest, static_argnums=2)(jnp.asarray(frames), jnp.asarray(here), most))
    for row, place, chosen in zip(frames, here, found, strict=True):
        assert set(row[chosen].tolist()) == selected([int(t) for t in row if t >= 0], int(place), most)


def test_one_prompted_frame_is_too_few():
    with pytest.raises(ValueError, match="2 or more"):
        closest(jnp.zeros((1, 3), jnp.int32), jnp.zeros(1, jnp.int32), 1)


def looked_up(here: int, reverse: bool, stride: int, count: int) -> dict[int, int]:
    """{frame: steps back} of the memories of tracked frames, by the formulas of upstream's loop."""
    frames = {here + 1 if reverse else here - 1: 1}
    for step in range(2, count + 1):
        if reverse:
            frame = -(-(here + 2) // stride) * stride + (step - 2) * stride
        else:
            frame = (here - 2) // stride * stride - (step - 2) * stride
        frames[frame] = step
    return frames


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_back(stride, reverse):
    frames = np.arange(60)
    for here in (3, 17, 30, 31, 41):
        wanted = looked_up(here, reverse, stride, 6)
        steps = np.asarray(steps_back(jnp.asarray(frames[None]), jnp.array([here]), jnp.array([reverse]), stride))[0]
        found = {int(t): int(steps[t]) for t in frames if 1 <= steps[t] <= 6}
        assert found == {t: step for t, step in wanted.items() if 0 <= t < 60}


def seen(cfg: Sam2Config, rows: int, value: float) -> FrameMemory:
    """A memory that is one number everywhere."""
    side, low = cfg.image_embedding_size, cfg.low_res_size
    shapes = [(side, side, cfg.mem_dim), (cfg.d_model,), (low, low), (), ()]
    return FrameMemory(*(jnp.full((rows, *shape), value, jnp.float32) for shape in shapes))


def everything(rows: int, value: bool = True) -> jax.Array:
    return jnp.full((rows,), value)


def tracked(state: TrackState, frame: int, rows=None) -> TrackState:
    count = state.rows
    rows = everything(count) if rows is None else rows
    at = jnp.full((count,), frame)
    return remember(state, seen(CFG, count, frame), at, as_prompted=everything(count, False), as_tracked=rows)


def prompted(state: TrackState, frame: int) -> TrackState:
    count = state.rows
    at = jnp.full((count,), frame)
    return remember(
        state, seen(CFG, count, frame), at, as_prompted=everything(count), as_tracked=everything(count, False)
    )


def held(frames: jax.Array, row: int = 0) -> set[int]:
    return {int(t) for t in np.asarray(frames)[row] if t >= 0}


def test_the_latest_frames_are_held_in_either_direction():
    state = prompted(empty_state(CFG, 2), 0)
    for frame in range(1, 40):
        state = tracked(state, frame)
    assert held(state.memory_frame) == set(range(34, 40)) and held(state.pointer_frame) == set(range(24, 40))
    for frame in range(30, 10, -1):
        state = tracked(state, frame, rows=jnp.array([True, False]))
    assert held(state.memory_frame) == set(range(11, 17)) and held(state.memory_frame, 1) == set(range(34, 40))
    slot = int(np.argmax(np.asarray(state.memory_frame)[0] == 14))
    assert np.all(np.asarray(state.memory[0, slot], np.float32) == 14), "the memory lies where its frame says"
    assert held(state.prompted.frame) == {0}


def test_prompted_frames_take_and_leave_their_slots():
    state = empty_state(CFG, 1, prompted_slots=3)
    for frame in (5, 20, 9):
        state = prompted(state, frame)
    assert np.asarray(state.prompted.frame).tolist() == [[5, 20, 9]], "in the order of prompting"
    state = prompted(state, 20)
    assert np.asarray(state.prompted.frame).tolist() == [[5, 20, 9]], "a second prompt changes no order"
    assert held(prompted(state, 7).prompted.frame) == {5, 7, 9}
    # A tracked frame that is prompted is tracked no more, and the other way round.
    state = prompted(tracked(grown(state, prompted_slots=5), 11), 11)
    assert held(state.memory_frame) == set() and held(state.prompted.frame) == {5, 9, 11, 20}
    assert float(frame_memory(state, jnp.array([11])).iou[0]) == 11.0


def test_rows_come_and_go():
    state = prompted(empty_state(CFG, 2), 3)
    state = tracked(state, 4)
    state = without_rows(state, jnp.array([True, False]))
    assert np.asarray(state.active).tolist() == [False, True] and held(state.memory_frame) == set()
    assert held(state.memory_frame, 1) == {4}
    wide = grown(state, rows=4)
    assert np.asarray(wide.active).tolist() == [False, True, False, False]
    one = state.row(jnp.array(1))
    assert one.rows == 1 and bool(one.active[0])
    back = wide.with_row(3, one)
    assert np.asarray(back.active).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="cannot become"):
        grown(wide, rows=2)


def test_forgetting_around_a_prompt():
    state = prompted(empty_state(CFG, 1, memory_slots=20), 0)
    for frame in range(1, 20):
        state = tracked(state, frame)
    state = forget_tracked(state, everything(1), jnp.array([10]), reach=7)
    assert held(state.memory_frame) == {1, 2, 18, 19} and held(state.prompted.frame) == {0}
    with pytest.raises(ValueError, match="at least 6"):
        empty_state(CFG, 1, memory_slots=5)


def test_memories_are_kept_in_the_format_asked_for():
    half = empty_state(CFG, 1)
    assert half.memory.dtype == jnp.bfloat16 and half.prompted.memory.dtype == jnp.bfloat16
    whole = empty_state(CFG, 1, memory_dtype="float32")
    assert whole.memory.dtype == jnp.float32 and whole.pointer.dtype == jnp.float32


def filled_by_search(mask: np.ndarray, max_area: int) -> np.ndarray:
    """Background pieces of at most `max_area` cells, found by a flood from every cell."""
    height, width = mask.shape
    done, out = np.zeros_like(mask, bool), np.zeros_like(mask, bool)
    for start in np.argwhere(~mask):
        if done[tuple(start)]:
            continue
        piece, stack = [], [tuple(start)]
        done[tuple(start)] = True
        while stack:
            y, x = stack.pop()
            piece.append((y, x))
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                for nx in range(max(x - 1, 0), min(x + 2, width)):
                    if not mask[ny, nx] and not done[ny, nx]:
                        done[ny, nx] = True
                        stack.append((ny, nx))
        if len(piece) <= max_area:
            out[tuple(np.array(piece).T)] = True
    return out


@pytest.mark.parametrize("max_area", [1, 3, 8])
def test_small_holes_are_filled(max_area):
    rng = np.random.default_rng(max_area)
    masks = np.stack([rng.random((20, 27)) < share for share in (0.5, 0.7, 0.85, 0.95)] + [np.zeros((20, 27)) > 1])
    # Winding pieces whose labels have the farthest to go: a line of eight cells, one of nine, a snake, a ring.
    drawn = np.ones((20, 27), bool)
    drawn[1, 1:9] = drawn[4, 1:10] = False
    drawn[7:12:2, 1:20] = drawn[8, 19] = drawn[10, 1] = False
    drawn[14:17, 3:6] = False
    drawn[15, 4] = True
    masks = np.concatenate([masks, drawn[None]])
    logits = np.where(masks, 2.0, -3.0).astype(np.float32)
    found = np.asarray(jax.jit(fill_holes, static_argnums=1)(logits, max_area))
    for mask, before, after in zip(masks, logits, found, strict=True):
        hole = filled_by_search(mask, max_area)
        np.testing.assert_array_equal(after, np.where(hole, np.float32(0.1), before))
    assert (found != logits).any()
    with pytest.raises(ValueError, match="positive"):
        fill_holes(jnp.asarray(logits), 0)


def test_sines_of_distances():
    found = np.asarray(sine_of_distance(jnp.array([0.0, 0.5, -2.0]), 8))
    waves = 10_000.0 ** (np.array([0, 0, 2, 2]) / 4)
    for row, distance in zip(found, (0.0, 0.5, -2.0), strict=True):
        np.testing.assert_allclose(row, [*np.sin(distance / waves), *np.cos(distance / waves)], atol=1e-6)


def test_objects_of_one_video_do_not_overlap():
    logits = np.random.default_rng(0).standard_normal((6, 5, 5)).astype(np.float32) * 20
    found = np.asarray(without_overlap(jnp.asarray(logits), videos=2)).reshape(2, 3, 5, 5)
    by_video = logits.reshape(2, 3, 5, 5)
    largest = by_video == by_video.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(found, np.where(largest, by_video, np.minimum(by_video, -10)))


def test_prompts_in_pixels_of_the_video():
    points, labels = scaled_points(CFG, (96, 192), points=[[48, 24]], labels=[1], box=[0, 0, 96, 96])
    np.testing.assert_allclose(points, [[0, 0], [64, 128], [32, 32]])
    assert labels.tolist() == [2, 3, 1]
    mask = np.zeros((64, 256), bool)
    mask[:32] = True
    assert scaled_mask(CFG, mask)[:64].all() and not scaled_mask(CFG, mask)[64:].any()
    rows = batched_prompts(CFG, [None, RowPrompt(points, labels), RowPrompt(mask=scaled_mask(CFG, mask))])
    assert rows.points.shape == (3, 4, 2) and np.asarray(rows.given).tolist() == [False, True, True]
    assert np.asarray(rows.labels)[1].tolist() == [2, 3, 1, -2]


@pytest.mark.parametrize(
    "ask,message",
    [
        ({}, "neither points nor a box"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "one label a point"),
        ({"points": [[1, 2]], "labels": [3]}, "must be 1"),
        ({"box": [1, 2, 3]}, "4 numbers"),
        ({"points": [[np.nan, 2]], "labels": [1]}, "finite"),
    ],
)
def test_bad_prompts(ask, message):
    with pytest.raises(InputError, match=message):
        scaled_points(CFG, (10, 10), **ask)


def test_bad_rows():
    mask = np.zeros((128, 128), bool)
    with pytest.raises(InputError, match="not both"):
        batched_prompts(CFG, [RowPrompt(np.zeros((1, 2)), np.ones(1), mask=mask)])
    with pytest.raises(InputError, match="must be"):
        batched_prompts(CFG, [RowPrompt(mask=mask[1:])])
    with pytest.raises(InputError, match="at least one point"):
        batched_prompts(CFG, [RowPrompt(np.zeros((0, 2)), np.zeros(0))])
    assert replace(CFG, image_size=128) == CFG
