"""Frames of training clips."""

import numpy as np
import pytest

from rvseg_jax.input_pipeline.sampling import anchors, contiguous, sparse_around


def test_anchors_stand_a_clip_apart():
    assert anchors(40, 17) == [0, 17, 34] and anchors(17, 17) == [0] and anchors(3, 17) == [0]


@pytest.mark.parametrize(("video", "anchor"), [(100, 34), (100, 0), (100, 99), (20, 17)])
def test_a_clip_holds_the_anchor_its_neighbours_and_frames_from_outside(video, anchor):
    for seed in range(50):
        places = sparse_around(anchor, video, 17, np.random.default_rng(seed))
        assert len(places) == 17 and (np.diff(places) >= 0).all() and places.min() >= 0 and places.max() < video
        near = places[(places >= anchor - 3) & (places <= anchor + 3)]
        assert anchor in near
        assert anchor == 0 or (near < anchor).any()
        assert anchor == video - 1 or (near > anchor).any()


def test_only_the_end_of_the_span_can_come_twice():
    """With room outside, nothing between the neighbours is drawn, and the later neighbour may be drawn again."""
    twice = 0
    for seed in range(300):
        places = sparse_around(50, 60, 17, np.random.default_rng(seed)).tolist()
        before = max(place for place in places if place < 50)
        after = min(place for place in places if place > 50)
        repeated = {place for place in places if places.count(place) > 1}
        assert before >= 47 and after <= 53 and repeated <= {after}
        twice += bool(repeated)
    assert 0 < twice < 300


def test_short_videos_fall_back_to_all_frames_and_then_repeat():
    fewer = sparse_around(2, 15, 17, np.random.default_rng(0))  # 14 others of 15 frames, not all outside
    assert len(set(fewer.tolist())) >= 14
    repeats = sparse_around(1, 4, 17, np.random.default_rng(0))
    assert len(repeats) == 17 and np.bincount(repeats, minlength=4).min() >= 3
    assert sparse_around(0, 1, 17, np.random.default_rng(0)).tolist() == [0] * 17


def test_very_short_clips():
    assert sparse_around(7, 30, 1, np.random.default_rng(0)).tolist() == [7]
    pair = sparse_around(7, 30, 2, np.random.default_rng(0))
    assert pair[0] == 7 and 8 <= pair[1] <= 10


def test_the_same_generator_gives_the_same_clip():
    one, two = (sparse_around(17, 80, 17, np.random.default_rng(9)) for _ in range(2))
    assert (one == two).all()
    with pytest.raises(ValueError, match="frame 80 of 80"):
        sparse_around(80, 80, 17, np.random.default_rng(9))


def test_neighbouring_frames():
    starts = {tuple(contiguous(6, 4, np.random.default_rng(seed)).tolist()) for seed in range(40)}
    assert starts == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}
    assert contiguous(2, 4, np.random.default_rng(0)).tolist() == [0, 1, 1, 1]
