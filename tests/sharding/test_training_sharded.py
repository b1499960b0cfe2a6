"""The training state and step on eight devices: shardings of every leaf, and the same numbers on every mesh."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rvseg_jax.core import config as configs
from rvseg_jax.parallel import make_mesh
from rvseg_jax.training import optim
from rvseg_jax.training.config import OptimizerConfig, default
from rvseg_jax.training.loop import run
from rvseg_jax.training.report import read_rows
from rvseg_jax.training.state import abstract, create
from rvseg_jax.training.step import batch_sharding, make_train_step, task_loss

SYSTEMS = str(Path(__file__).parent.parent / "systems")


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(SYSTEMS)
    import toy_regression

    return toy_regression


def start(toy, mesh, *, accumulate=1, rows=16, trainable=("",)):
    """State at step 0 and the step, on a mesh; the encoder is trained too unless `trainable` says otherwise."""
    task = toy.Regression(toy.Config(), precision=toy.PARITY)
    config = OptimizerConfig(lr=0.05, weight_decay=0.01, trainable=trainable, accumulate=accumulate)
    rate = lambda count: jnp.float32(config.lr)  # noqa: E731
    transform = optim.optimizer(config, rate)
    target = abstract(task, transform, mesh, patterns=config.trainable, averaged=True)
    sharding = batch_sharding(rows // accumulate, mesh)
    step = make_train_step(task_loss(task.loss), transform, rate, target, sharding, accumulate=accumulate)
    return create(target, task, transform, seed=0), step


def rows(count=16):
    x = np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)
    return {"x": x, "y": x @ np.linspace(-1, 1, 8, dtype=np.float32)}


def test_every_leaf_has_the_sharding_of_its_table(toy):
    created, step = start(toy, make_mesh({"fsdp": 4, "tensor": 2}))
    check_shardings(created)
    stepped, metrics = step(created, rows())
    check_shardings(stepped)
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(dict(metrics))} == {PartitionSpec()}


def check_shardings(state):
    expected = {
        "encoder": {"kernel": PartitionSpec("fsdp", "tensor")},
        "head": {"kernel": PartitionSpec("fsdp"), "bias": PartitionSpec()},
    }
    adam = next(part for part in state.opt_state if hasattr(part, "mu"))
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, tree) == expected
    for leaf in (adam.count, state.step, state.key, state.healthy):
        assert leaf.sharding.spec == PartitionSpec()
    kernel = state.params["encoder"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8)}


def test_frozen_leaves_are_sharded_too(toy):
    state, step = start(toy, make_mesh({"fsdp": 8}), trainable=("^head/",))
    state, _ = step(state, rows())
    assert {shard.data.shape for shard in state.frozen["encoder"]["kernel"].addressable_shards} == {(1, 16)}


def train(toy, mesh, accumulate):
    """Losses and gradient norms of three steps, and the weights and averages after them."""
    state, step = start(toy, mesh, accumulate=accumulate)
    seen = []
    with jax.set_mesh(mesh):
        for _ in range(3):
            state, metrics = step(state, rows())
            seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.asarray(seen), jax.tree.map(np.asarray, (state.params, state.ema))


@pytest.mark.parametrize(
    ("accumulate", "first", "others"),
    [
        (1, {}, [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "seq": 2, "tensor": 2}]),
        # Which rows share a micro-batch, and with it the noise, depends on the number of parts of the batch.
        (2, {"data": 8}, [{"data": 2, "fsdp": 4}]),
    ],
)
def test_meshes_give_the_same_losses_and_parameters(toy, accumulate, first, others):
    mesh = make_mesh(first) if first else make_mesh(devices=jax.devices()[:1])
    expected, weights = train(toy, mesh, accumulate)
    for shape in others:
        seen, found = train(toy, make_mesh(shape), accumulate)
        np.testing.assert_allclose(seen, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, weights)


def test_run_goes_on_on_another_mesh(toy, tmp_path):
    def recipe(*changes):
        config = default("toy_regression:Regression")
        config.optimizer.lr = 0.05
        config.log.update(every=1, tensorboard=False)
        return configs.override(config, changes)

    run(recipe("steps=3", "mesh.fsdp=8"), tmp_path / "moved")
    other = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    moved = run(recipe("steps=6", *other), tmp_path / "moved").state
    stayed = run(recipe("steps=6", "mesh.fsdp=8"), tmp_path / "stayed").state
    assert moved.params["encoder"]["kernel"].sharding.mesh.shape["tensor"] == 2
    losses = [[row["loss"] for row in read_rows(tmp_path / name)] for name in ("moved", "stayed")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved.ema, stayed.ema)
