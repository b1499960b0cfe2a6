"""Clips with geometry: depth, poses, flow and masks against each other and against the pixels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, map_coordinates, minimum_filter

from rvseg_jax.evaluation import homography
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import (
    CAMERAS,
    GeometricShapes,
    GeometricShapesConfig,
    geometric_held_out,
    geometric_list_hash,
)

FIRST_TWELVE = "3e54ca9e6afd87a50c13820528cdedc9534c37da8f0437dee358d07bcd20a152"
ALL = "c53e438d7e1f0c0d7118124ff81f1366bb6873d9ce1537e54755bdccb50b7d99"
LEAST_MOTION = 0.12  # of the short side over a clip, see `scene.TRAVEL`


@pytest.fixture(scope="module")
def clips():
    return [geometric_held_out()[index] for index in range(12)]


def reprojected(clip, start, end):
    """Where still pixels of frame `start` lie in frame `end`, by depth, poses and intrinsics: [H, W, 2] and depth."""
    height, width = clip.depth.shape[1:]
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(clip.intrinsics[start].astype(float)).T
    points = rays * clip.depth[start][..., None]
    pose = np.linalg.inv(clip.poses[end].astype(float)) @ clip.poses[start].astype(float)
    there = points @ pose[:3, :3].T + pose[:3, 3]
    image = there @ clip.intrinsics[end].astype(float).T
    return image[..., :2] / image[..., 2:], there[..., 2]


def here(clip):
    rows, columns = np.mgrid[: clip.depth.shape[1], : clip.depth.shape[2]] + 0.5
    return np.stack([columns, rows], -1)


def sampled(image, places):
    """Bilinear values of an image at [P, 2] x, y."""
    return map_coordinates(image, [places[:, 1] - 0.5, places[:, 0] - 0.5], order=1, mode="nearest")


def test_layout(clips):
    assert [clip.kind for clip in clips] == list(CAMERAS) * 2
    for clip in clips:
        count = len(clip.moving)
        assert clip.frames.shape == (12, 112, 112, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape == (12, 112, 112) and clip.object_masks.shape == (count, 12, 112, 112)
        assert clip.flow.shape == clip.backward_flow.shape == (11, 112, 112, 2)
        assert clip.depth.shape == (12, 112, 112) and clip.poses.shape == (12, 4, 4)
        assert 1 <= clip.moving.sum() <= 3 and 3 <= (~clip.moving).sum() <= 5
        assert tuple(bool(motion) for motion in clip.motions) == tuple(clip.moving)
        assert clip.object_masks.sum(axis=0).max() == 1  # a pixel shows one object
        np.testing.assert_array_equal(clip.masks, clip.object_masks[clip.moving].any(axis=0))
        assert clip.depth.min() > 1 and clip.depth.max() < 60
        np.testing.assert_allclose(
            clip.poses[:, :3, :3] @ np.swapaxes(clip.poses[:, :3, :3], 1, 2), np.tile(np.eye(3), (12, 1, 1)), atol=1e-6
        )


def test_depth_and_poses_give_the_flow_of_what_stands_still(clips):
    for clip in clips:
        for t in range(11):
            for start, end, flow in ((t, t + 1, clip.flow[t]), (t + 1, t, clip.backward_flow[t])):
                still = ~clip.masks[start]
                expected = reprojected(clip, start, end)[0] - here(clip)
                np.testing.assert_allclose(flow[still], expected[still], atol=2e-3)


def test_moving_objects_move_against_the_still_world(clips):
    """Summed over a clip, the fastest of an object's visible pixels differ by at least a share of the short side."""
    for clip in clips:
        motion = [
            np.linalg.norm(clip.flow[t] - reprojected(clip, t, t + 1)[0] + here(clip), axis=-1) for t in range(11)
        ]
        for mask, moving in zip(clip.object_masks, clip.moving, strict=True):
            total = sum(float(step[seen].max()) for step, seen in zip(motion, mask, strict=False) if seen.any())
            frames = sum(bool(seen.any()) for seen in mask[:-1])
            if moving:
                assert total >= 0.5 * LEAST_MOTION * 112 * frames / 11
            else:
                assert total < 0.05


def test_depth_of_the_next_frame_agrees_where_nothing_covers(clips):
    for clip in clips[:6]:
        places, depth = reprojected(clip, 4, 5)
        inside = ((places > 1) & (places < 111)).all(axis=-1) & ~clip.masks[4] & ~clip.masks[5]
        # Away from steps of depth the bilinear value is that of the surface.
        there = sampled(clip.depth[5], places[inside])
        near = sampled(minimum_filter(clip.depth[5], 3), places[inside])
        smooth = there < near * 1.08
        assert smooth.mean() > 0.7
        # What is seen in frame 4 is there in frame 5 at that depth, or behind something nearer.
        closer = there[smooth] < depth[inside][smooth] * 0.97
        assert closer.mean() < 0.08
        error = np.abs(there[smooth][~closer] / depth[inside][smooth][~closer] - 1)
        assert np.median(error) < 1e-3 and np.mean(error > 0.02) < 0.01


@pytest.mark.parametrize("backward", [False, True])
def test_flow_warps_a_frame_onto_the_next(clips, backward):
    """The warped frame is the frame where both flows agree, and half a pixel of error would show."""
    errors, shifted, kept = [], [], 0
    for clip in clips:
        for t in range(11):
            start, end = (t + 1, t) if backward else (t, t + 1)
            flow, back = (clip.flow[t], clip.backward_flow[t])[:: -1 if backward else 1]
            places = here(clip) + flow
            inside = ((places > 1) & (places < 111)).all(axis=-1)
            for label in range(-1, len(clip.moving)):
                masks = clip.object_masks[label] if label >= 0 else ~clip.object_masks.any(axis=0)
                shown = inside & binary_erosion(masks[start], np.ones((5, 5)))
                visible = sampled(binary_erosion(masks[end], np.ones((3, 3))).astype(float), places[shown]) > 0.999
                returned = np.stack([sampled(back[..., axis], places[shown]) for axis in (0, 1)], -1)
                if label >= 0 and visible.any():
                    np.testing.assert_allclose(returned[visible], -flow[shown][visible], atol=0.15)
                before = clip.frames[start][shown][visible].astype(float)
                for shift, into in ((0.0, errors), (0.5, shifted)):
                    warped = [
                        sampled(clip.frames[end][..., channel].astype(float), places[shown][visible] + shift)
                        for channel in range(3)
                    ]
                    into.append(np.abs(before - np.stack(warped, -1)).ravel())
                kept += int(visible.sum())
    right, wrong = np.concatenate(errors).mean(), np.concatenate(shifted).mean()
    assert kept > 800_000
    assert right < 2.5 and wrong > 1.8 * right, (right, wrong)


def test_a_fixed_camera_sees_no_flow_but_of_moving_objects():
    source = GeometricShapes(GeometricShapesConfig(fixed=1.0, empty=0.0, frames=8))
    for index in range(3):
        clip = source[index]
        assert clip.kind == "still" and clip.masks.any(axis=(1, 2)).sum() >= 6
        assert np.abs(clip.flow[~clip.masks[:-1]]).max() < 1e-4
        assert len(np.unique(clip.poses, axis=0)) == 1


def test_clips_in_which_nothing_moves_have_empty_masks_but_a_moving_camera():
    source = GeometricShapes(GeometricShapesConfig(fixed=0.0, empty=1.0, frames=8))
    for index in range(3):
        clip = source[index]
        assert not clip.masks.any() and not clip.moving.any() and len(clip.moving) >= 3
        assert np.abs(clip.flow).max() > 1


def test_one_homography_does_not_explain_the_still_world(clips):
    """Parallax: in most clips it leaves more than a pixel somewhere on what stands still."""
    left = []
    for clip in clips:
        flow = clip.flow[5]
        error = homography.residual(flow, homography.fit(flow))
        left.append(np.percentile(error[~clip.masks[5]], 95))
    assert np.median(left) > 1


def test_a_homography_explains_the_flow_of_a_camera_that_turns_and_zooms():
    rows, columns = np.mgrid[:96, :128] + 0.5
    points = np.stack([columns, rows, np.ones_like(rows)], -1)
    truth = np.array([[1.05, 0.02, -4.0], [-0.01, 1.04, 2.0], [1e-4, -2e-4, 1.0]])
    there = points @ truth.T
    flow = there[..., :2] / there[..., 2:] - points[..., :2]
    flow[20:50, 30:70] += (3.0, -2.0)  # an object
    error = homography.residual(flow, homography.fit(flow))
    moving = np.zeros((96, 128), bool)
    moving[20:50, 30:70] = True
    assert error[~moving].max() < 0.15 and error[moving].min() > 3.3
    both = homography.residuals(flow[None], -flow[None])
    assert both.shape == (2, 96, 128) and np.allclose(both[0], error)


def test_an_index_is_all_that_a_clip_depends_on():
    config = GeometricShapesConfig(size=(72, 96), frames=8)
    first, again, other = GeometricShapes(config)[3], GeometricShapes(config)[3], GeometricShapes(config)[4]
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.depth, again.depth)
    assert first.frames.shape == (8, 72, 96, 3) and not np.array_equal(first.frames, other.frames)
    valid = GeometricShapes(replace(config, split="valid"))[3]
    assert not np.array_equal(first.frames, valid.frames)
    bare = GeometricShapes(replace(config, with_flow=False))[3]
    assert bare.flow is None and np.array_equal(bare.frames, first.frames)


def test_a_part_of_a_clip(clips):
    part = clips[0].sample([3, 3, 0])
    np.testing.assert_array_equal(part.frames, clips[0].frames[[3, 3, 0]])
    np.testing.assert_array_equal(part.masks, clips[0].masks[[3, 3, 0]])
    assert part.frame_names == ("00003", "00003", "00000") and len(part) == 3


def test_the_held_out_list_is_fixed():
    assert len(geometric_held_out()) == 128
    assert geometric_list_hash(geometric_held_out(), 12) == FIRST_TWELVE


@pytest.mark.slow
def test_all_of_the_held_out_list_is_fixed():
    assert geometric_list_hash(geometric_held_out()) == ALL


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": (48, 112)}, "at least 64"),
        ({"frames": 2}, "give 4 to 64"),
        ({"moving": (0, 2)}, "moving"),
        ({"still": (3, 9)}, "still"),
        ({"cameras": ("crane",)}, "choose from truck"),
        ({"empty": 2.0}, "shares from 0 to 1"),
        ({"split": "test"}, "choose from train"),
        ({"length": 0}, "must be positive"),
    ],
)
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        GeometricShapesConfig(**change)


def test_no_clip_behind_the_last():
    with pytest.raises(IndexError, match="no sample 128"):
        geometric_held_out()[128]
