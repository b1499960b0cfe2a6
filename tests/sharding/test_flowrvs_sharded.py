"""FlowRVS's training loss and its gradients are the same on every mesh, and each leaf lies where its table says."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.core.precision import PARITY
from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.parallel import batch_shardings, make_mesh, pjit
from rvseg_jax.systems.flowrvs.training import DiTConfig, DiTTask
from rvseg_jax.training import optim
from rvseg_jax.training.config import OptimizerConfig
from rvseg_jax.training.state import abstract, shardings_of

MESHES = [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)]
AXES = ("data", "fsdp", "seq", "tensor")
# Widths that divide by two on every axis that a table names.
CONFIG = DiTConfig(
    dit=dataclasses.replace(WanTransformerConfig.tiny(), num_attention_heads=2, attention_head_dim=12, ffn_dim=48),
    vae=dataclasses.replace(WanVAEConfig.tiny(), base_dim=4),
    text=UMT5Config.tiny(),
    text_length=6,
    remat="full",
)


def task():
    return DiTTask(CONFIG, precision=PARITY)


def batch():
    rng = np.random.default_rng(0)
    shape = (8, 2, 4, 4, CONFIG.vae.z_dim)
    return {
        "video_mean": rng.standard_normal(shape, np.float32),
        "video_std": np.full(shape, 0.1, np.float32),
        "mask_latents": rng.standard_normal(shape, np.float32),
        "ids": rng.integers(3, 60, (8, 6), np.int32),
        "text_mask": np.arange(6) < np.arange(8)[:, None] % 4 + 3,
    }


def on_mesh(mesh, random_leaves):
    """Loss and gradients of the trained parameters, computed on a mesh with everything sharded by the tables."""
    made = task()
    transform = optim.optimizer(OptimizerConfig(), lambda count: jnp.float32(1e-3))
    target = abstract(made, transform, mesh, patterns=("^dit/", "^text/"), averaged=True)
    params, frozen = (
        jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), random_leaves(tree, seed=3), tree)
        for tree in (target.params, target.frozen)
    )
    rows = batch_shardings(np.zeros((8, 1)), mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def loss(params, frozen, batch):
        return made.loss({**params, **frozen}, batch, jax.random.key(5))[0]

    with jax.set_mesh(mesh):
        step = pjit(
            jax.value_and_grad(loss),
            in_shardings=(shardings_of(target.params), shardings_of(target.frozen), rows),
            out_shardings=(whole, shardings_of(target.params)),
        )
        value, gradients = step(params, frozen, batch())
    return target, float(value), gradients


@functools.cache
def on_one_device(random_leaves):
    _, value, gradients = on_mesh(make_mesh(devices=jax.devices()[:1]), random_leaves)
    return value, jax.tree.map(np.asarray, gradients)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes, random_leaves):
    target, value, gradients = on_mesh(make_mesh(dict(zip(AXES, sizes, strict=True))), random_leaves)
    expected_value, expected = on_one_device(random_leaves)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, ours), theirs in zip(flatten(gradients).items(), flatten(expected).values(), strict=True):
        assert ours.sharding == flatten(target.params)[path].sharding
        assert np.abs(theirs).max() > 0, path
        # Relative to the leaf, and to all where a leaf's own gradients nearly cancel.
        bar = 1e-5 * max(np.abs(theirs).max(), 1e-2 * largest)
        np.testing.assert_allclose(ours, theirs, atol=bar, rtol=0, err_msg=path)


def test_moments_and_averages_lie_with_their_parameters():
    mesh = make_mesh({"data": 1, "fsdp": 4, "seq": 1, "tensor": 2})
    made = task()
    transform = optim.optimizer(OptimizerConfig(), lambda count: jnp.float32(1e-3))
    state = abstract(made, transform, mesh, patterns=("^dit/", "^text/"), averaged=True)
    adam = next(part for part in state.opt_state if hasattr(part, "mu"))
    params = flatten(state.params)
    cut = 0
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        for path, leaf in flatten(tree).items():
            names = next(names for pattern, names in made.sharding_table if re.search(pattern, path))
            axes = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
            wanted = [axes.get(name) for name in names]
            sizes = dict(mesh.shape)
            spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
            for size, axis, found in zip(leaf.shape, wanted or [None] * leaf.ndim, spec, strict=True):
                if axis is None or size % sizes[axis]:
                    assert found is None, path
                else:
                    assert found == axis, (path, names, spec)
                    cut += 1
            assert leaf.sharding == params[path].sharding
    assert cut > 40, "hardly anything is sharded"
