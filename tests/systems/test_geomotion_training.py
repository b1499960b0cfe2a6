"""Training of GeoMotion: rows, losses, what is trained, and a few steps of each stage on clips with known truth."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rvseg_jax as rv
from rvseg_jax.core import config as configs
from rvseg_jax.core import tree_paths
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import write_layout
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import Pi3
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.systems.geomotion import geometry_losses
from rvseg_jax.systems.geomotion.flow import longest, magnitudes_in_step
from rvseg_jax.systems.geomotion.flow_training import FlowTask, FlowTrainingConfig
from rvseg_jax.systems.geomotion.geometry_training import GeometryTask, GeometryTrainingConfig
from rvseg_jax.systems.geomotion.losses import MotionLossConfig, motion_losses
from rvseg_jax.systems.geomotion.rows import FlowRow, GeometryRow, camera_points
from rvseg_jax.systems.geomotion.training import TRAINED, MotionTask, MotionTrainingConfig
from rvseg_jax.training.config import parse

CLIPS = GeometricShapesConfig(size=(70, 70), frames=4)
PI3 = Pi3Config.tiny(FLOAT32)


@pytest.fixture(scope="module")
def clip():
    return GeometricShapes(CLIPS)[0]


def test_pairs_carry_the_flow_between_them(clip):
    """Where the flow says that a pixel goes, there it is, mirrored or not."""
    row = FlowRow(6)(clip, np.random.default_rng(1))
    assert row["first"].shape == row["second"].shape == (6, 70, 70, 3) and row["flow"].shape == (6, 70, 70, 2)
    rows, columns = np.mgrid[:70, :70]
    for first, second, flow in zip(row["first"], row["second"], row["flow"], strict=True):
        x, y = (columns + flow[..., 0]).round().astype(int), (rows + flow[..., 1]).round().astype(int)
        inside = (x >= 0) & (x < 70) & (y >= 0) & (y < 70)
        moved = second[y[inside], x[inside]].astype(int)
        followed = np.abs(moved - first[inside]).mean()
        assert followed < 0.7 * np.abs(second.astype(int) - first)[inside].mean()
    with pytest.raises(ValueError, match="fewer than 7"):
        FlowRow(7)(clip, np.random.default_rng(0))


def test_points_are_where_the_cameras_see_them(clip):
    row = GeometryRow(3)(clip, np.random.default_rng(0))
    projected = np.einsum("tij,thwj->thwi", clip.intrinsics, camera_points(clip.depth, clip.intrinsics))
    places = projected[..., :2] / projected[..., 2:]
    np.testing.assert_allclose(places[0, 3, 5], (5.5, 3.5), atol=1e-4)
    assert row["points"].shape == (3, 70, 70, 3) and row["poses"].shape == (3, 4, 4)


def test_the_scale_is_a_weighted_median(clip):
    truth = jnp.asarray(camera_points(clip.depth, clip.intrinsics))[None]
    noise = np.random.default_rng(0).standard_normal(truth.shape)
    points = truth * (0.4 + 0.1 * noise)
    found = float(geometry_losses.best_scale(points, truth)[0])
    apart = (slice(None), slice(None), slice(None, None, 4), slice(None, None, 4))
    tried = {
        s: float(geometry_losses.point_loss(s * points[apart], truth[apart]))
        for s in (found, 0.98 * found, 1.02 * found)
    }
    assert min(tried, key=tried.get) == found
    exact = geometry_losses.best_scale(truth / 5, truth)
    np.testing.assert_allclose(exact, 5, rtol=1e-5)


def test_cameras_are_compared_by_pairs(clip):
    """Neither the world's frame nor its origin counts; a turn of one camera counts in the pairs that it is in."""
    truth = jnp.asarray(clip.poses)[None]
    angle = 0.3
    turn = jnp.asarray([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], jnp.float32)
    world = jnp.eye(4).at[:3, :3].set(turn).at[:3, 3].set(jnp.asarray([1.0, 2.0, 3.0]))
    translation, rotation = geometry_losses.camera_losses(world @ truth, truth)
    assert float(translation) < 1e-9 and float(rotation) < 3e-3
    one = truth.at[0, 1, :3, :3].set(truth[0, 1, :3, :3] @ turn)
    _, rotation = geometry_losses.camera_losses(one, truth)
    least = np.arccos(1 - 1e-6)  # what the loss calls equal
    np.testing.assert_allclose(rotation, (6 * angle + 6 * least) / 12, rtol=1e-3)  # of 12 ordered pairs of 4 frames


def test_normals_and_confidence(clip):
    truth = jnp.asarray(camera_points(clip.depth, clip.intrinsics))[None]
    assert float(geometry_losses.normal_loss(3 * truth, truth)) < 1e-3
    tilted = truth.at[..., 2].add(0.5 * truth[..., 0])
    assert float(geometry_losses.normal_loss(tilted, truth)) > 0.1
    right = jnp.where(jnp.arange(70) < 35, 1.0, 1.5)[:, None] * truth
    logits = jnp.broadcast_to(jnp.where(jnp.arange(70) < 35, 9.0, -9.0), truth.shape[:-1])
    assert float(geometry_losses.confidence_loss(logits, right, truth)) < 1e-3
    assert float(geometry_losses.confidence_loss(-logits, right, truth)) > 8


def test_void_does_not_count():
    rng = np.random.default_rng(0)
    logits, masks = jnp.asarray(rng.standard_normal((1, 2, 5, 6))), jnp.asarray(rng.random((1, 2, 5, 6)) > 0.5)
    valid = jnp.asarray(rng.random((1, 2, 5, 6)) > 0.3)
    cfg = MotionLossConfig(1, 1, 1)
    plain = motion_losses(cfg, logits, masks, valid)
    spoilt = motion_losses(cfg, jnp.where(valid, logits, 7.0), jnp.where(valid, masks, ~masks), valid)
    np.testing.assert_allclose(plain["total"], spoilt["total"], rtol=1e-6)
    assert MotionLossConfig.paper() == MotionLossConfig(0.0, 0.5, 0.5)


def test_flow_in_the_step_is_the_runners(random_leaves, clip):

    from rvseg_jax.models.raft.inference import FlowRunner

    graph, shapes = nnx.split(nnx.eval_shape(lambda: RAFT(RaftConfig.tiny(FLOAT32), rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, random_leaves(shapes))
    frames = clip.frames[:3].astype(np.float32) / 255
    expected = longest(FlowRunner(model).clip(frames))
    found = jax.jit(lambda leaves, clips: magnitudes_in_step(nnx.merge(graph, leaves), clips))(
        nnx.state(model), np.stack([frames, frames[::-1]])
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-4 * expected.max())
    np.testing.assert_allclose(found[1], expected[::-1], atol=1e-4 * expected.max())
    assert not magnitudes_in_step(model, jnp.zeros((1, 1, 64, 64, 3))).any()


def _batch(task, rows):
    source, row, rng = task.source("train"), task.transform("train"), np.random.default_rng(0)
    made = [row(source[index], rng) for index in range(rows)]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


def _trained(task, params, batch, steps, lr, trainable=("",)):
    """Losses of some steps of Adam on one batch, and the parameters after them."""

    def label(path, _):
        name = tree_paths.SEPARATOR.join(str(key.key) for key in path)
        return "adam" if any(re.search(pattern, name) for pattern in trainable) else "frozen"

    labels = jax.tree_util.tree_map_with_path(label, params)
    optimizer = optax.multi_transform({"adam": optax.adam(lr), "frozen": optax.set_to_zero()}, labels)

    @jax.jit
    def step(params, state, batch):
        (loss, _), gradients = jax.value_and_grad(task.loss, has_aux=True)(params, batch, jax.random.key(0))
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return losses, params


@pytest.mark.slow
def test_geometry_learns(tmp_path):
    config = GeometryTrainingConfig(PI3, dataclasses.replace(CLIPS, with_flow=False), frames=2, validation_clips=1)
    task = GeometryTask(config, precision=FLOAT32)
    params = jax.jit(task.init)(jax.random.key(0))
    losses, params = _trained(task, params, _batch(task, 2), 12, 3e-3)
    assert losses[-1] < 0.8 * losses[0], losses
    task.export(params, tmp_path)
    again = GeometryTask(dataclasses.replace(config, pretrained=str(tmp_path)), precision=FLOAT32)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), params)
    for path, leaf in tree_paths.flatten(again.restore_pretrained(target)).items():
        np.testing.assert_array_equal(leaf, tree_paths.flatten(params)[path], err_msg=path)
    scores = task.evaluate(params, step=0)
    assert 0 < scores["point_error"] < 1 and 0 < scores["of_a_plane"] < 1 and 0 <= scores["rotation_degrees"] < 180


def test_rows_of_real_layouts(tmp_path):
    sets = []
    for name in ("hoi4d", "dynamic_verse"):
        write_layout(name, tmp_path / name, GeometricShapes(dataclasses.replace(CLIPS, with_flow=False)), range(2))
        sets.append((name, str(tmp_path / name)))
    sizes = {"geomotion": GeoMotionConfig.tiny(FLOAT32), "raft": RaftConfig.tiny(FLOAT32), "frames": 3, "size": 56}
    task = MotionTask(MotionTrainingConfig(sets=tuple(sets), **sizes), precision=FLOAT32)
    batch = _batch(task, 4)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "frames": ((4, 3, 56, 56, 3), np.uint8),
        "masks": ((4, 3, 56, 56), np.bool_),
        "valid": ((4, 3, 56, 56), np.bool_),
    }
    assert batch["masks"].any() and batch["valid"].all()
    with pytest.raises(ValueError, match="multiple of the patches' 14"):
        MotionTrainingConfig(GeoMotionConfig.tiny(), size=50)
    with pytest.raises(ValueError, match="'sam2'"):
        MotionTrainingConfig(pretrained=(("sam2", "somewhere"),))


@pytest.mark.parametrize("recipe", ["geomotion", "geomotion_paper", "tiny/geomotion"])
def test_recipes_train_the_published_share(recipe):
    settings, own = parse(configs.load(recipe))
    task = MotionTask(own, precision=FLOAT32)
    params = tree_paths.flatten(jax.eval_shape(task.init, jax.random.key(0)))
    trained = [path for path in params if any(re.search(pattern, path) for pattern in settings.optimizer.trainable)]
    if not recipe.startswith("tiny"):
        assert sum(np.prod(params[path].shape) for path in trained) == 80_320_196
        assert settings.optimizer.lr == 5e-5 and settings.batch_size == 1 and own.frames == 12 and own.size == 518
    assert {path.split("/")[1] for path in trained} == {"motion_aware_decoder", "pi3"}


@pytest.mark.slow
def test_flow_learns(tmp_path):
    with pytest.raises(ValueError, match="multiples of 8"):
        FlowTrainingConfig(RaftConfig.tiny(FLOAT32), CLIPS)
    clips = dataclasses.replace(CLIPS, size=(64, 72))
    config = FlowTrainingConfig(RaftConfig.tiny(FLOAT32), clips, pairs=2, validation_clips=1)
    task = FlowTask(config, precision=FLOAT32)
    params = jax.jit(task.init)(jax.random.key(0))
    losses, params = _trained(task, params, _batch(task, 2), 20, 2e-3, ("^(?!.*/(mean|var)$)",))
    assert losses[-1] < 0.8 * losses[0], losses
    task.export(params, tmp_path)
    assert set(task.evaluate(params, step=0)) == {"end_point_error", "of_no_flow"}


@pytest.mark.slow
def test_motion_learns_with_frozen_parts_and_its_export_segments_the_same(tmp_path):
    config = MotionTrainingConfig(
        GeoMotionConfig.tiny(FLOAT32),
        RaftConfig.tiny(FLOAT32),
        CLIPS,
        frames=3,
        size=70,
        remat="none",
        validation_clips=2,
    )
    task = MotionTask(config, precision=FLOAT32)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = _batch(task, 2)
    before = tree_paths.flatten(params)
    losses, params = _trained(task, params, batch, 25, 3e-3, TRAINED)
    assert losses[-1] < 0.8 * losses[0], losses
    changed = {path for path, leaf in tree_paths.flatten(params).items() if not np.array_equal(leaf, before[path])}
    assert changed and all(
        path.startswith(("geomotion/motion_aware_decoder/", "geomotion/pi3/conf_")) for path in changed
    )
    assert 0 <= task.evaluate(params, step=0)["j"] <= 1

    task.export(params, tmp_path)
    system = rv.load("geomotion", tmp_path, dtype="float32").system
    expected = jax.nn.sigmoid(task._logits(params, jnp.asarray(batch["frames"])))[0]
    np.testing.assert_allclose(system.of_group(batch["frames"][0]), expected, atol=1e-4)


def test_a_cache_gives_the_same_losses(tmp_path):
    """Of flow alone and of features too; one that was made by other networks is made anew."""
    config = MotionTrainingConfig(
        geomotion=GeoMotionConfig.tiny(FLOAT32),
        raft=RaftConfig.tiny(FLOAT32),
        clips=dataclasses.replace(CLIPS, with_flow=False),
        frames=3,
        size=70,
        remat="none",
        pretrained=(("raft", str(tmp_path / "nets")), ("pi3", str(tmp_path / "nets"))),
        cached_clips=2,
    )
    plain = MotionTask(dataclasses.replace(config, pretrained=()), precision=FLOAT32)
    params = jax.jit(plain.init)(jax.random.key(0))
    networks = {"raft": parameters.assembled(plain._models["raft"], params["raft"])}
    pi3 = parameters.assembled(lambda rngs: Pi3(config.geomotion.pi3, rngs=rngs), params["geomotion"]["pi3"])
    bundle.save(tmp_path / "nets", "geomotion", {**networks, "pi3": pi3})
    own = list(MotionTask(config, precision=FLOAT32)._rows())
    batch = {name: np.stack([row[name] for row in own]) for name in own[0]}
    loss = jax.jit(plain.loss)
    wanted, _ = loss(params, batch, jax.random.key(0))
    for features in (False, True):
        name = str(tmp_path / f"{features}.array_record")
        task = MotionTask(dataclasses.replace(config, cache=name, cache_features=features), precision=FLOAT32)
        rows = task.source("train")
        assert len(rows) == 2 and ("high" in rows[0]) == features == ("frames" not in rows[0])
        stored = {key: np.stack([task.transform("train")(rows[i], None)[key] for i in range(2)]) for key in rows[0]}
        found, _ = loss(params, stored, jax.random.key(0))
        np.testing.assert_allclose(found, wanted, rtol=2e-3)
        made = (tmp_path / f"{features}.array_record").stat().st_mtime_ns
        MotionTask(task.config, precision=FLOAT32).source("train")
        assert (tmp_path / f"{features}.array_record").stat().st_mtime_ns == made
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params["raft"])
    bundle.save(tmp_path / "nets", "geomotion", {"raft": parameters.assembled(plain._models["raft"], other)})
    MotionTask(task.config, precision=FLOAT32).source("train")
    assert (tmp_path / "True.array_record").stat().st_mtime_ns > made
    with pytest.raises(InputError, match="cached_clips"):
        MotionTask(dataclasses.replace(task.config, cached_clips=0), precision=FLOAT32).source("train")
