"""XMem's training loss, its gradients and its layout on every mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.models.xmem.clip import draw_choices, segment_clip
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.models.xmem.network import SHARDING, XMem
from rvseg_jax.parallel import DEFAULT_RULES, batch_shardings, make_mesh, pjit, shardings
from rvseg_jax.trackers.xmem.losses import clip_losses

# One step compiles for half a minute.
MESHES = [(1, 8, 1, 1), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((2, 2, 1, 2), (1, 2, 2, 2)))]
SMALL = dataclasses.replace(
    XMemConfig.tiny(),
    key_dim=4,
    value_dim=16,
    hidden_dim=4,
    key_planes=(4, 4, 4),
    key_depths=(1, 1, 1),
    value_planes=(4, 4, 4),
    decoder_dim=16,
    up_dim=8,
)
CLIPS, FRAMES, OBJECTS, SIDE = 8, 3, 2, 32


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, OBJECTS + 1, (CLIPS, FRAMES, SIDE, SIDE))
    return {
        "frames": rng.standard_normal((CLIPS, FRAMES, SIDE, SIDE, 3)).astype(np.float32),
        "masks": np.stack([labels[:, 0] == 1, labels[:, 0] == 2], 1).astype(np.float32),
        "labels": labels[:, 1:],
        "selector": np.ones((CLIPS, OBJECTS), np.float32),
        "objects": np.full(CLIPS, OBJECTS),
    }


def abstract():
    return nnx.split(nnx.eval_shape(lambda: XMem(SMALL, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat)


def loss(graph, statistics, parameters, given):
    choices = draw_choices(jax.random.key(0), clips=CLIPS, frames=FRAMES)
    model = nnx.merge(graph, parameters, statistics)
    found = segment_clip(model, given["frames"], given["masks"], given["selector"], choices)
    return clip_losses(found.logits, found.masks, given["labels"], given["objects"], 30_000).total


@functools.cache
def problem(fill):
    """Function of parameters and batch, parameters, and what one device makes of them."""
    graph, parameters, statistics = abstract()
    parameters, statistics = (nnx.to_pure_dict(fill(tree)) for tree in (parameters, statistics))
    function = jax.value_and_grad(functools.partial(loss, graph, statistics))
    return function, parameters, jax.device_get(jax.jit(function)(parameters, batch()))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes, random_leaves):
    function, parameters, (wanted_loss, wanted) = problem(random_leaves)
    mesh = make_mesh(dict(zip(("data", "fsdp", "seq", "tensor"), sizes, strict=True)))
    given = batch()
    layout = shardings(parameters, SHARDING, DEFAULT_RULES, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    of_batch = jax.tree.map(lambda x: batch_shardings(x, mesh), given)
    with jax.set_mesh(mesh):
        step = pjit(function, in_shardings=(layout, of_batch), out_shardings=(whole, layout))
        found_loss, found = step(parameters, given)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert largest > 0
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1e-2 * largest), rtol=0)


def test_rules_may_cut_the_channels():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    _, parameters, statistics = abstract()
    found = shardings(nnx.to_pure_dict(parameters), SHARDING, {**DEFAULT_RULES, "conv_out": "tensor"}, mesh)
    kernel = found["decoder"]["fuser"]["block2"]["conv1"]["kernel"]
    assert kernel.spec == PartitionSpec(None, None, None, "tensor")
    assert found["decoder"]["pred"]["kernel"].is_fully_replicated
    for leaf in jax.tree.leaves(shardings(nnx.to_pure_dict(statistics), SHARDING, DEFAULT_RULES, mesh)):
        assert leaf.is_fully_replicated
