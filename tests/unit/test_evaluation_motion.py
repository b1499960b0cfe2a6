"""Scores of motion segmentation against masks whose J and F are known."""

import json

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import motion, motion_jobs
from rvseg_jax.evaluation.motion import STANDARD, STANDARD_SPARSE, UPSTREAM, UPSTREAM_SPARSE, MotionProtocol
from rvseg_jax.evaluation.runner import EvaluationOptions
from rvseg_jax.input_pipeline.datasets.motion_sets import BENCHMARKS
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import (
    GeometricShapes,
    GeometricShapesConfig,
    geometric_held_out,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import write_layout
from rvseg_jax.input_pipeline.motion_videos import MotionSample

# J and F of these squares in 20x20 pixels, as DAVIS's own code gives them.
TRUTH, NEAR, FAR = ((slice(5, 15),) * 2, (slice(6, 16),) * 2, (slice(7, 17),) * 2)
NEAR_SCORES, FAR_SCORES = (0.680672, 0.975), (0.470588, 0.15)
ALL_FRAMES = MotionProtocol("plain", "all frames of all videos", 1, 32, 0.5)


def square(place):
    mask = np.zeros((20, 20), bool)
    mask[place] = True
    return mask


def clip(frames, *, video="v", valid=None, known=None, size=(20, 20)):
    """A clip whose frame t is all of the value t, with the square as truth of every frame."""
    images = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, *size, 3))
    masks = np.broadcast_to(square(TRUTH), (frames, 20, 20))
    names = tuple(f"{t:05d}" for t in range(frames))
    return MotionSample(images, masks, video, names, valid=valid, known=known)


def answering(masks):
    """A predictor that knows a frame by its value, and says 0.9 and 0.05."""
    return lambda frames: np.stack([np.where(masks(int(frame[0, 0, 0])), 0.9, 0.05) for frame in frames])


def test_a_video_is_cut_into_interleaved_clips_and_put_together_again():
    clips = []

    def predict(frames):
        clips.append(frames[:, 0, 0, 0].tolist())
        return frames[..., 0] / 100

    found = motion.probabilities(predict, clip(11).frames, stride=4, window=2)
    assert clips == [[0, 4], [8], [1, 5], [9], [2, 6], [10], [3, 7]]
    np.testing.assert_allclose(found, clip(11).frames[..., 0] / 100)
    clips.clear()
    motion.probabilities(predict, clip(3).frames, stride=4, window=32)
    assert clips == [[0], [1], [2]]


def test_probabilities_are_resized_in_256_steps_before_they_are_compared():
    small = np.zeros((1, 2, 2))
    small[0, 0, 0] = 1.0
    steps = np.asarray(Image.fromarray((small[0] * 255).astype(np.uint8)).resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(motion.masks_of(small, (4, 6), 0.1)[0], steps >= 26)
    # 0.1019 is 25.98 steps, which is cut to 25 and lies below; of the right size it is compared as it is.
    flat = np.full((1, 2, 2), 0.1019)
    assert not motion.masks_of(flat, (4, 4), 0.1).any() and motion.masks_of(flat, (2, 2), 0.1).all()


def test_scores_are_those_of_davis():
    masks = np.stack([square(TRUTH), square(NEAR), square(FAR), np.zeros((20, 20), bool)])
    found = motion.score(clip(4), masks, ALL_FRAMES)
    np.testing.assert_allclose(found["j"], [1, NEAR_SCORES[0], FAR_SCORES[0], 0], atol=1e-6)
    np.testing.assert_allclose(found["f"], [1, NEAR_SCORES[1], FAR_SCORES[1], 0], atol=1e-6)
    inner = motion.score(clip(4), masks, STANDARD)
    np.testing.assert_allclose(inner["j"], [NEAR_SCORES[0], FAR_SCORES[0]], atol=1e-6)


def test_frames_without_anything_that_moves_have_to_be_empty():
    empty = MotionSample(clip(2).frames, np.zeros((2, 20, 20), bool), "v", ("0", "1"))
    found = motion.score(empty, np.stack([np.zeros((20, 20), bool), square(NEAR)]), ALL_FRAMES)
    assert found == {"j": [1.0, 0.0], "f": [1.0, 0.0]}


def test_void_is_left_out_or_moves_by_the_protocol():
    valid = np.ones((3, 20, 20), bool)
    valid[:, 15:, :] = valid[:, :, 15:] = False
    sample = clip(3, valid=valid)
    masks = np.stack([square(NEAR)] * 3)
    # Of the square from 6 to 16 what lies before 15 is within the truth, the rest is void: 81 of 100 pixels.
    assert motion.score(sample, masks, STANDARD)["j"] == pytest.approx([0.81])
    truth = square(TRUTH) | ~valid[0]
    expected = (truth & masks[0]).sum() / (truth | masks[0]).sum()
    assert motion.score(sample, masks, UPSTREAM)["j"] == pytest.approx([expected] * 3)


def test_only_frames_with_truth_count():
    known = np.array([True, False, False, True, True, False])
    sample = clip(6, known=known)
    masks = np.stack([square(TRUTH)] * 3 + [square(FAR)] * 3)
    assert motion.score(sample, masks, STANDARD_SPARSE)["j"] == pytest.approx([1, FAR_SCORES[0], FAR_SCORES[0]])
    assert motion.whole(sample, STANDARD_SPARSE) is sample
    part = motion.whole(sample, UPSTREAM_SPARSE)
    assert part.frame_names == ("00000", "00003", "00004") and part.known.all()
    assert list(part.annotated) == [0, 1, 2]


def run(tmp_path, source, predict, protocol=ALL_FRAMES, **more):
    return motion.evaluate(
        source,
        predict,
        tmp_path / "run",
        protocol=protocol,
        settings={"dataset": "squares"},
        options=more.pop("options", EvaluationOptions()),
        **more,
    )


def test_both_averages_stand_in_the_summary(tmp_path):
    """A video of 3 frames found well and one of 9 found badly: 3 to 9, or 1 to 1."""
    source = [clip(3, video="short"), clip(9, video="long")]
    evaluation = run(
        tmp_path,
        source,
        lambda frames: np.stack([square(TRUTH if len(frames) == 3 else FAR)] * len(frames)).astype(float),
        controls={"shifted": lambda sample: np.stack([square(NEAR)] * len(sample))},
    )
    assert evaluation.complete
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["protocol"] == "all frames of all videos" and summary["threshold"] == 0.5
    both = summary["averaged"]
    assert both["over videos"]["J"] == pytest.approx((1 + FAR_SCORES[0]) / 2, abs=1e-6)
    assert both["over all frames"]["J"] == pytest.approx((3 + 9 * FAR_SCORES[0]) / 12, abs=1e-6)
    assert both["over all frames"]["J_recall"] == pytest.approx(3 / 12)
    assert both["over videos"]["F_recall"] == pytest.approx(1 / 2)
    assert both["over all frames"]["J&F"] == pytest.approx((15 + 9 * sum(FAR_SCORES) - 9) / 24, abs=1e-6)
    assert summary["overall"] == both["over videos"] and summary["overall"]["frames"] == 12
    assert summary["controls"]["shifted"]["J&F"] == pytest.approx(sum(NEAR_SCORES) / 2, abs=1e-6)
    margin = (1 + sum(FAR_SCORES) / 2) / 2 - sum(NEAR_SCORES) / 2
    assert summary["margins"]["shifted"]["mean"] == pytest.approx(margin, abs=1e-6)


def test_upstream_weighs_frames_and_binarises_at_a_tenth(tmp_path):
    source = [clip(5)]
    faint = lambda frames: np.stack([np.where(square(TRUTH), 0.2, 0.05)] * len(frames))  # noqa: E731
    found = run(tmp_path, source, faint, UPSTREAM)
    assert found.summary["overall"]["J"] == 1 and "J&F_interval" not in found.summary["overall"]
    assert motion.masks_of(faint(source[0].frames), (20, 20), STANDARD.threshold).sum() == 0


def test_refinement_sees_the_whole_video_once(tmp_path):
    calls = []

    nothing = lambda frames: np.zeros((len(frames), 10, 10))  # noqa: E731

    def refined(frames, found):
        calls.append(found.shape)
        return np.broadcast_to(square(TRUTH), (len(found), 20, 20)).astype(float)

    found = run(tmp_path, [clip(9)], nothing, UPSTREAM, refine=refined, masks_folder=tmp_path / "masks")
    assert calls == [(9, 10, 10)] and found.summary["overall"]["J&F"] == 1
    written = np.asarray(Image.open(tmp_path / "masks" / "v" / "00008.png"))
    np.testing.assert_array_equal(written == 255, square(TRUTH))


def test_the_best_of_several_controls_counts(tmp_path):
    variants = {"near": np.stack([square(NEAR)] * 4), "far": np.stack([square(FAR)] * 4)}
    found = run(tmp_path, [clip(4)], answering(lambda t: square(TRUTH)), controls={"one": lambda sample: variants})
    control = found.summary["controls"]["one"]
    assert control["variant"] == "near" and control["J"] == pytest.approx(NEAR_SCORES[0], abs=1e-6)


def test_a_video_that_fails_is_named_and_the_rest_is_scored(tmp_path):
    source = [clip(4, video="good"), clip(2, video="short")]
    found = run(tmp_path, source, answering(lambda t: square(TRUTH)), STANDARD)
    assert not found.complete and found.summary["scored"] == 1
    assert "short has 2 frames, of which none counts" in found.failed[0]["error"]
    again = run(
        tmp_path, source[:1], answering(lambda t: square(TRUTH)), STANDARD, options=EvaluationOptions(resume=True)
    )
    assert again.complete


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda frames: np.zeros((1, 20, 20)), "4 frames"),
        (lambda frames: np.full((len(frames), 20, 20), 1.5), "not within 0 to 1"),
        (lambda frames: np.full((len(frames), 20, 20), np.nan), "not within 0 to 1"),
        (lambda frames: np.zeros((len(frames), 20 + int(frames[0, 0, 0, 0]), 20)), "those before"),
    ],
)
def test_answers_that_are_no_probabilities(answer, text):
    with pytest.raises(InputError, match=text):
        motion.probabilities(answer, clip(8).frames, stride=2, window=32)


def test_masks_of_another_shape():
    with pytest.raises(InputError, match="masks of v have shape"):
        motion.score(clip(3), np.zeros((2, 20, 20), bool), ALL_FRAMES)


def test_jobs_name_datasets_and_protocols(tmp_path):
    jobs = motion_jobs.motion_jobs()
    assert set(jobs) == {*BENCHMARKS, "moving_shapes"}
    assert jobs["fbms"].protocol(None).annotated_only and jobs["davis16"].protocol("standard").drop_ends
    assert jobs["moving_shapes"].protocol(None) is motion.SHAPES
    with pytest.raises(InputError, match="choose from upstream, standard"):
        jobs["davis17"].protocol("official")
    with pytest.raises(InputError, match="davis16 needs its folder"):
        jobs["davis16"].open(None)
    more = {"settings": {}, "options": EvaluationOptions()}
    with pytest.raises(InputError, match="not scored on 'kubric'"):
        motion_jobs.evaluate("kubric", None, answering(lambda t: square(TRUTH)), tmp_path, **more)


def test_a_perfect_predictor_is_perfect_on_disk_by_both_protocols(tmp_path):
    """Truth that lies on disk, sparse and dense; the predictor knows a mask by its frame."""
    clips = GeometricShapes(GeometricShapesConfig(size=(64, 64), frames=9, with_flow=False, empty=0.0))
    truth = [clips[index].masks for index in range(2)]
    for layout in ("davis17", "fbms", "segtrack"):
        write_layout(layout, tmp_path / layout, clips, range(2))
        source = motion_jobs.motion_jobs()[layout].open(tmp_path / layout)
        images = [source[index].sample(range(9)).frames for index in range(2)]
        known = {
            image.tobytes(): mask for clip in zip(images, truth, strict=True) for image, mask in zip(*clip, strict=True)
        }

        def predict(frames, known=known):
            return np.stack([known[frame.tobytes()] for frame in frames]).astype(np.float32)

        for protocol, frames in (("upstream", 4 if layout == "fbms" else 18), ("standard", 4)):
            out = tmp_path / f"{layout}_{protocol}"
            options = EvaluationOptions()
            found = motion_jobs.evaluate(
                layout, tmp_path / layout, predict, out, protocol=protocol, settings={"system": "x"}, options=options
            )
            assert found.complete and found.summary["overall"]["J&F"] == 1
            wanted = {"davis17": 14, "segtrack": 18, "fbms": 4}[layout] if protocol == "standard" else frames
            assert found.summary["overall"]["frames"] == wanted
            assert ("Not comparable with" in found.summary["protocol"]) and found.summary["system"] == "x"


def test_moving_shapes_is_scored_with_its_controls(tmp_path):
    source = geometric_held_out(GeometricShapesConfig(size=(80, 80), frames=6))
    clips = [source[index] for index in range(3)]
    known = {clip.frames.tobytes(): clip.masks for clip in clips}
    found = motion.evaluate(
        clips,
        lambda frames: known[frames.tobytes()].astype(np.float32),
        tmp_path,
        protocol=motion.SHAPES,
        settings={},
        options=EvaluationOptions(),
        controls=motion_jobs.motion_jobs()["moving_shapes"].controls,
    )
    summary = found.summary
    assert summary["overall"]["J&F"] == 1 and set(summary["by_kind"]) == {"truck", "dolly", "orbit"}
    left, flow = summary["controls"]["homography"], summary["controls"]["flow"]
    assert 0.2 < left["J"] < 0.9 and left["variant"].startswith("above") and flow["J"] < 0.9
    assert summary["margins"]["homography"]["mean"] == pytest.approx(1 - left["J&F"])
    # The best threshold is the best of those that were tried.
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    each = {
        variant: np.mean([np.mean(line["controls"]["homography"][variant]["j"]) for line in lines])
        for variant in lines[0]["controls"]["homography"]
    }
    assert len(each) == 40 and each[left["variant"]] == pytest.approx(left["J"]) and max(each.values()) < 0.95
