"""GeoMotion as a whole at random weights: groups, windows, flow, SAM 2's part, and what users can get wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import rvseg_jax as rv
from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import motion
from rvseg_jax.formats.mask_png import read_mask
from rvseg_jax.input_pipeline.datasets.motion_sets import open_motion
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import write_layout
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.inference import ClipFlow
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.models.sam2.tracking import Place
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts, scaled_mask
from rvseg_jax.models.sam2.tracking_state import empty_state
from rvseg_jax.processing.geomotion import handed_on
from rvseg_jax.processing.sam2 import square_frame
from rvseg_jax.systems.base import SegmentOptions
from rvseg_jax.systems.geomotion import loading
from rvseg_jax.systems.geomotion.config import GeoMotionSystemConfig
from rvseg_jax.systems.geomotion.cross_filling import cross_filled
from rvseg_jax.systems.geomotion.flow import longest
from rvseg_jax.systems.geomotion.system import GeoMotionSystem, groups

SIZE = 42
CONFIG = GeoMotionSystemConfig(GeoMotionConfig.tiny(), RaftConfig.tiny(), size=SIZE, group=4, refine=False)


@pytest.fixture(scope="module")
def networks(random_leaves):
    def filled(model, cfg):
        graph, shapes = nnx.split(nnx.eval_shape(lambda: model(cfg, rngs=nnx.Rngs(0))))
        return nnx.merge(graph, random_leaves(shapes))

    return filled(GeoMotion, CONFIG.geomotion), filled(RAFT, CONFIG.raft)


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 256, (40, 60, 3), np.uint8)
    return np.stack([np.roll(start, 2 * t, axis=1) for t in range(9)])


def test_groups_are_upstreams_interleaved_chunks():
    found = [list(map(int, places)) for places in groups(11, 4, 2)]
    assert found == [[0, 4], [8], [1, 5], [9], [2, 6], [10], [3, 7]]
    assert [list(places) for places in groups(1, 4, 32)] == [[0]]


def test_the_longer_way_counts_and_ends_have_one():
    flow = ClipFlow(np.zeros((2, 1, 2, 2), np.float32), np.zeros((2, 1, 2, 2), np.float32))
    flow.forward[0, 0, 0], flow.forward[1, 0, 1], flow.backward[0, 0, 0] = (3, 4), (0, 2), (0, 1)
    np.testing.assert_array_equal(longest(flow)[:, 0], [[5, 0], [1, 2], [0, 0]])


def test_a_clip_goes_through_whole_in_groups_and_in_windows(networks, clip):
    """Plain restatements of the same steps, from the networks themselves."""
    system = GeoMotionSystem(CONFIG, *networks)
    whole = system.probabilities(clip[:4])
    small = np.stack(
        [np.asarray(Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for frame in clip]
    )
    flow = longest(system._flow.clip(small[:4].astype(np.float32) / 255))
    logits = networks[0](jnp.asarray(small[:4], jnp.float32)[None] / 255, jnp.asarray(flow)[None]).logits[0]
    expected = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(whole, expected, atol=1e-5)

    strided = GeoMotionSystem(dataclasses.replace(CONFIG, stride=2, group=2), *networks)
    apart = strided.probabilities(clip[:4])
    np.testing.assert_allclose(apart[::2], system.probabilities(clip[:4:2]), atol=1e-5)
    np.testing.assert_allclose(apart[1::2], system.probabilities(clip[1:4:2]), atol=1e-5)

    model = rv.Predictor(system)
    found = model.predict(clip, options=SegmentOptions(threshold=0.4))
    assert found.text == ("what moves",) and found.masks.shape == (1, 9, 40, 60)
    # Windows of 4 frames that share 1: the first two frames are seen by the first window alone.
    alone = np.asarray(system._enlarged(jnp.asarray(whole), (40, 60)))
    np.testing.assert_array_equal(found.masks[0, :3], alone[:3] > 0.4)
    assert 0 < found.masks.mean() < 1 and found.status == ("ok",)
    model.predict(clip[:4], options=SegmentOptions(max_memory=10**9))
    assert system._flow.max_bytes == 10**9
    assert 0.4 < found.scores[0] < 1


def test_one_frame_has_no_flow(networks, clip):
    system = GeoMotionSystem(CONFIG, *networks)
    expected = networks[0](
        jnp.asarray(np.asarray(Image.fromarray(clip[0]).resize((SIZE, SIZE), Image.Resampling.LANCZOS)))[None, None]
        / 255.0,
        jnp.zeros((1, 1, SIZE, SIZE)),
    ).logits[0]
    np.testing.assert_allclose(system.probabilities(clip[:1]), jax.nn.sigmoid(expected), atol=1e-5)
    assert rv.Predictor(system).predict(clip[:1]).masks.shape == (1, 1, 40, 60)


def test_frames_are_followed_from_those_beside_them():
    """Even frames from odd prompts, odd ones from even prompts, every prompt known before the first frame."""
    programs = rv.load("sam2").tracker.programs
    rng = np.random.default_rng(1)
    frames = list(rng.integers(0, 256, (4, 50, 70, 3), np.uint8))
    probabilities = np.zeros((4, SIZE, SIZE), np.float32)
    probabilities[1, 5:20, 5:20] = probabilities[3, 8:25, 8:25] = 0.9
    logits, filled = cross_filled(programs, frames, probabilities, threshold=0.8)
    np.testing.assert_array_equal(filled, [True, False, True, False])  # no even frame shows anything
    assert not logits[[1, 3]].any()

    cfg = programs.cfg
    state = empty_state(cfg, 1, prompted_slots=2)
    features = [programs.encode_image(jnp.asarray(square_frame(frame, cfg.image_size))[None]) for frame in frames]
    for t in (1, 3):
        mask = scaled_mask(cfg, probabilities[t] > 0.8)
        place = Place.of(1, t, num_frames=4)
        seen = programs.observe(features[t], None, batched_prompts(cfg, [RowPrompt(mask=mask)]), place)
        state = programs.settle(state, seen, place, jnp.ones(1, bool))
    for t in (0, 2):
        state, seen = programs.track_step(state, features[t], Place.of(1, t, num_frames=4))
        expected = np.asarray(programs.enlarged(seen.logits, (SIZE, SIZE))[0])
        np.testing.assert_allclose(logits[t], expected, atol=1e-4 * np.abs(expected).max())

    nothing, filled = cross_filled(programs, frames, 0 * probabilities, threshold=0.8)
    assert not nothing.any() and not filled.any()


def test_refined_masks_are_sam2s_where_it_could_be_asked(networks, clip):
    config = dataclasses.replace(CONFIG, refine=True, prompt_threshold=0.45)
    programs = rv.load("sam2").tracker.programs
    plain, refined = GeoMotionSystem(CONFIG, *networks), GeoMotionSystem(config, *networks, programs)
    raw = plain.probabilities(clip[:4])
    expected, filled = cross_filled(programs, list(clip[:4]), raw, threshold=0.45)
    assert filled.all()
    np.testing.assert_allclose(refined.probabilities(clip[:4]), jax.nn.sigmoid(expected), atol=1e-4)
    upstreams = GeoMotionSystem(dataclasses.replace(config, refine_like_upstream=True), *networks, programs)
    shown = [handed_on(frame, SIZE) for frame in clip[:4]]
    expected, _ = cross_filled(programs, shown, raw, threshold=0.45)
    np.testing.assert_array_equal(upstreams.probabilities(clip[:4]), expected > 0)
    strict = GeoMotionSystem(dataclasses.replace(config, prompt_threshold=0.999), *networks, programs)
    np.testing.assert_array_equal(strict.probabilities(clip[:4]), raw)


def test_what_users_get_wrong(networks, clip, tmp_path):
    system = GeoMotionSystem(CONFIG, *networks)
    with pytest.raises(InputError, match="leave 'the dog' out"):
        rv.Predictor(system).predict(clip, "the dog")
    with pytest.raises(InputError, match="two frames need about"):
        rv.Predictor(system).predict(clip, options=SegmentOptions(max_memory=1000))
    with pytest.raises(ValueError, match="multiple of the patches' 14"):
        dataclasses.replace(CONFIG, size=40)
    frames = tmp_path / "frames"
    frames.mkdir()
    for t in range(3):
        Image.fromarray(clip[t][: 40 - t % 2]).save(frames / f"{t:05d}.png")
    with pytest.raises(InputError, match="bring all frames to one size"):
        rv.Predictor(system).predict(frames)


def test_a_checkpoint_gives_the_same_masks(networks, clip, tmp_path, caplog):
    loading.save(tmp_path, {"pi3_motion": networks[0], "raft": networks[1]}, config=CONFIG)
    model = rv.load("geomotion", tmp_path, dtype="parity")
    assert model.system.config == CONFIG
    expected = GeoMotionSystem(CONFIG, *networks).probabilities(clip[:4])
    np.testing.assert_allclose(model.system.probabilities(clip[:4]), expected, atol=1e-5)
    published = rv.load("geomotion", tmp_path, published=True, group=3).system.config
    assert (published.stride, published.group, published.threshold, published.overlap) == (4, 3, 0.1, 0.0)
    with pytest.raises(InputError, match="holds no SAM 2"):
        rv.load("geomotion", tmp_path, refine=True)
    loading.save(tmp_path, {}, config=dataclasses.replace(CONFIG, refine=True))
    with caplog.at_level("WARNING", "rvseg_jax"):
        assert not rv.load("geomotion", tmp_path).system.refines
    assert "masks are not sharpened" in caplog.text
    with pytest.raises(InputError, match="no setting 'speed'"):
        rv.load("geomotion", tmp_path, speed=3)


def test_the_command_scores_by_both_protocols(networks, tmp_path, capsys):
    root, weights = tmp_path / "davis", tmp_path / "weights"
    clips = GeometricShapes(GeometricShapesConfig(size=(64, 80), frames=6, with_flow=False, empty=0.0))
    write_layout("davis16", root, clips, range(1))
    loading.save(weights, {"pi3_motion": networks[0], "raft": networks[1]}, config=CONFIG)
    system = rv.load("geomotion", weights, dtype="float32").system
    frames = open_motion("davis16", root)[0].sample(range(6)).frames
    found = np.zeros((6, SIZE, SIZE), np.float32)
    for first in range(4):
        found[first::4] = system.of_group(frames[first::4])
    words = ["eval", "geomotion", "davis-all", str(root), "--checkpoint", str(weights), "--dtype", "float32"]
    for protocol, threshold in (("upstream", 0.1), ("standard", 0.5)):
        out = tmp_path / protocol
        assert main([*words, "--protocol", protocol, "-o", str(out), "--write-masks"]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["threshold"] == threshold and summary["stride"] == 4
        assert protocol == "standard" or summary["overall"]["frames"] == 6
        expected = motion.masks_of(found, (64, 80), threshold)
        masks = [read_mask(path) for path in sorted((out / "masks/train_000000").iterdir())]
        np.testing.assert_array_equal(np.stack(masks), expected)
    for layout, place in (("segtrack", "SegTrackv2"), ("fbms", "FBMS59_clean")):
        write_layout(layout, tmp_path / "all" / place, clips, range(1))
    every = ["eval", "geomotion", "every-motion", str(tmp_path / "all"), "--checkpoint", str(weights), "--limit", "1"]
    assert main([*every, "--dtype", "float32", "-o", str(tmp_path / "every")]) == 0
    assert sorted(path.name for path in (tmp_path / "every").iterdir()) == ["fbms", "segtrack"]
    assert "davis16_m (DAVIS2017-M/DAVIS)" in capsys.readouterr().err
    assert main([*every[:3], str(weights), "-o", str(tmp_path / "none")]) == 2
    assert "holds none of DAVIS" in capsys.readouterr().err
    assert json.loads((tmp_path / "every/fbms/summary.json").read_text())["refined"] is False
    assert main([*words, "--set", "stride=2", "-o", str(tmp_path / "no")]) == 2
    assert "--set stride has no effect" in capsys.readouterr().err
    assert main([*words, "--split", "val", "-o", str(tmp_path / "no")]) == 2
    assert "--split means nothing" in capsys.readouterr().err
    assert main([*words, "--threshold", "0.3", "-o", str(tmp_path / "no")]) == 2
    assert "means nothing for geomotion" in capsys.readouterr().err
    assert main(["eval", "geomotion", "mevis", str(root), "-o", str(tmp_path / "no")]) == 2
    assert "cannot be scored on mevis" in capsys.readouterr().err


def test_the_bundled_model_finds_what_moves():
    """A held-out clip: what it finds overlaps with the truth far more than the truth of another clip does."""
    clips = GeometricShapes(GeometricShapesConfig(split="held_out", frames=8))
    found, true = [], []
    model = rv.load("geomotion", stride=1)
    for index in (4, 9):
        clip = clips[index]
        found.append(model.predict(clip.frames).masks[0])
        true.append(clip.masks)
    own = [(a & b).sum() / (a | b).sum() for a, b in zip(found, true, strict=True)]
    other = [(a & b).sum() / (a | b).sum() for a, b in zip(found, reversed(true), strict=True)]
    assert min(own) > max(other)
