"""The bundled trackers: they follow objects, room for more changes nothing, and nothing compiles anew."""

import numpy as np
import pytest

import rvseg_jax as rv
from rvseg_jax.evaluation import tracking
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import tracking_held_out
from rvseg_jax.models.sam2.tracking import Place
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts
from rvseg_jax.models.sam2.tracking_state import empty_state
from rvseg_jax.processing.sam2 import square_frame
from rvseg_jax.trackers import base

NAMES = ("sam2", "xmem")


@pytest.fixture(scope="module")
def clip():
    source = tracking_held_out()
    return next(source[index] for index in range(20) if len(source[index].ids) >= 3)


@pytest.fixture(scope="module", params=NAMES)
def tracker(request):
    return base.module(request.param).load(None, dtype="float32", mesh=None)


def region(truth, found):
    return (truth & found).sum() / (truth | found).sum()


def test_objects_are_followed_whatever_the_room(tracker, clip):
    frames = clip.frames[:8]
    wide, narrow = tracker.session(objects=4), tracker.session(objects=1)
    for session in (wide, narrow):
        session.add(1, mask=clip.masks[0, 0])
        session.add(5, mask=clip.masks[1, 0])
    found = []
    for index, frame in enumerate(frames):
        if index == 3:
            for session in (wide, narrow):
                session.add(9, mask=clip.masks[2, 3])
        a, b = wide.step(frame), narrow.step(frame)
        assert a.ids == b.ids == ((1, 5) if index < 3 else (1, 5, 9))
        np.testing.assert_array_equal(a.masks, b.masks)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        found.append(a)
    assert region(clip.masks[0, 0], found[0][1]) > 0.85
    if tracker.name == "xmem":  # the bundled SAM 2 does not follow, see docs/tracking.md
        shown = [region(clip.masks[0, index], found[index][1]) for index in range(1, 8)]
        assert np.mean(shown) > 0.5, shown


def test_a_removed_object_is_gone_and_the_others_stay(tracker, clip):
    with_both, alone = tracker.session(objects=2), tracker.session(objects=2)
    with_both.add(1, mask=clip.masks[0, 0])
    with_both.add(2, mask=clip.masks[1, 0])
    alone.add(1, mask=clip.masks[0, 0])
    for index, frame in enumerate(clip.frames[:6]):
        if index == 3:
            with_both.remove(2)
        both, one = with_both.step(frame), alone.step(frame)
        assert both.ids == ((1, 2) if index < 3 else (1,))
        if tracker.name == "sam2":  # XMem's objects compete for pixels
            np.testing.assert_array_equal(both[1], one[1])
    if tracker.name == "sam2":  # its row serves the next object
        with_both.add(3, mask=clip.masks[2, 6])
        assert with_both.step(clip.frames[6]).ids == (1, 3)


def test_nothing_compiles_anew(tracker, clip):
    def compiled():
        return dict(tracker.programs.compiles) if tracker.name == "sam2" else tracker.propagator.compiled

    def run(frames):
        session = tracker.session(objects=2)
        session.add(1, mask=clip.masks[0, 0])
        for frame in frames:
            session.step(frame)

    run(clip.frames[:7])
    before = compiled()
    run(np.concatenate([clip.frames, clip.frames[::-1]]))
    assert compiled() == before


def test_another_size_of_frames(tracker, clip):
    """Frames of another shape than the model's own, against masks of that shape."""
    tall = np.repeat(clip.frames[:4], 2, axis=1)
    masks = np.repeat(clip.masks[:, :4], 2, axis=2)
    session = tracker.session()
    session.add(1, mask=masks[0, 0])
    found = [session.step(frame)[1] for frame in tall]
    assert found[0].shape == (256, 128)
    assert region(masks[0, 0], found[0]) > 0.9


def test_every_prompted_frame_is_remembered():
    """A correction does not push an earlier prompt out of memory."""
    tracker, clip = rv.load("sam2").tracker, tracking_held_out()[0]
    session = tracker.session(objects=2)
    for index, frame in enumerate(clip.frames[:6]):
        if index in (0, 2, 5):
            session.add(1, mask=clip.masks[0, index])
        if index == 3:
            session.add(2, mask=clip.masks[1, index])
        session.step(frame)
    frames = np.asarray(session._state.prompted.frame)
    assert [sorted(row[row >= 0].tolist()) for row in frames] == [[0, 2, 5], [3]]
    session.remove(1)
    session.add(7, box=(4, 4, 40, 40))
    session.step(clip.frames[6])
    frames = np.asarray(session._state.prompted.frame)
    assert [sorted(row[row >= 0].tolist()) for row in frames] == [[6], [3]]


def test_a_session_is_its_steps():
    """Points, a box and a mask reach the model in its own pixels: the session gives what the steps give."""
    tracker = rv.load("sam2").tracker
    clip, cfg = tracking_held_out()[0], tracker.config
    tall = np.repeat(clip.frames[:2], 2, axis=1)
    given = {
        "points": ({"points": [[40, 90]], "labels": [0]}, RowPrompt(np.float32([[40, 45]]), np.int32([0]))),
        "box": ({"box": (10, 40, 50, 120)}, RowPrompt(np.float32([[10, 20], [50, 60]]), np.int32([2, 3]))),
        "mask": ({"mask": np.repeat(clip.masks[0, 0], 2, axis=0)}, RowPrompt(mask=clip.masks[0, 0])),
    }
    found = {}
    for kind, (prompt, row) in given.items():
        session = tracker.session()
        session.add(3, **prompt)
        state, programs = empty_state(cfg, 1), tracker.programs
        for index, frame in enumerate(tall):
            features = programs.encode_image(square_frame(frame, cfg.image_size)[None])
            asked = None if index else batched_prompts(cfg, [row])
            state, seen = programs.track_step(state, features, Place.of(1, index), asked)
            logits = np.asarray(programs.enlarged(seen.logits, (256, 128))[0])
            stepped = session.step(frame)
            np.testing.assert_array_equal(stepped[3], logits > 0)
            np.testing.assert_allclose(stepped.scores, 1 / (1 + np.exp(-seen.object_score)), rtol=1e-5)
            found[kind, index] = logits
    assert not np.allclose(found["points", 0], found["box", 0], atol=1e-2)
    assert not np.allclose(found["points", 1], found["mask", 1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow(name, clip):
    import jax

    tracker = base.module(name).load(None, dtype="float32", mesh=None)
    session = tracker.session(objects=2)
    session.add(1, mask=clip.masks[0, 0])
    order = [*range(24), *range(22, 0, -1)]
    held = {}
    for index in range(400):
        session.step(clip.frames[order[index % len(order)]])
        if index + 1 in (200, 400):
            held[index + 1] = sum(array.nbytes for array in jax.live_arrays())
    assert held[400] <= 1.02 * held[200]


@pytest.mark.slow
def test_xmem_is_better_than_the_first_mask():
    tracker, source = base.module("xmem").load(None, dtype="float32", mesh=None), tracking_held_out()
    own, copied = [], []
    for index in range(12):
        sample = source[index]
        for values, masks in ((own, tracking.followed(tracker, sample)), (copied, tracking.first_mask(sample))):
            values += [(one["j"] + one["f"]) / 2 for one in tracking.visible_frames(sample, masks)]
    assert np.mean(own) > np.mean(copied) + 0.3
