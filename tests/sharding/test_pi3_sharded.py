"""GeoMotion's network, and Pi3 within it, give the same on every mesh: frames cut, clips cut, weights cut."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.core.tree_paths import flatten, matches, unflatten
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.model import SHARDING, TRAINED, GeoMotion
from rvseg_jax.parallel import DEFAULT_RULES, make_mesh, pjit, shardings

AXES = ("data", "fsdp", "seq", "tensor")
TINY = GeoMotionConfig.tiny()
CONFIG = dataclasses.replace(
    TINY,
    pi3=dataclasses.replace(
        TINY.pi3,
        encoder=dataclasses.replace(TINY.pi3.encoder, depth=1),
        **{"depth": 2, "heads_from": (0, 1), "head_depth": 1},
    ),
    low_blocks=(0, 1),
)
# Everything cut; one clip whose frames are cut; clips and weights cut. One step compiles for half a minute.
MESHES = [(1, 2, 2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1, 1, 8, 1), (2, 2, 1, 2)))]
CLIPS = {(1, 1, 8, 1): 1}


def inputs(clips):
    rng = np.random.default_rng(0)
    video = rng.uniform(0, 1, (clips, 8, 28, 28, 3)).astype(np.float32)
    flow = rng.gamma(1.0, 4.0, (clips, 8, 28, 28)).astype(np.float32)
    return video, flow, rng.uniform(0.5, 1.5, flow.shape).astype(np.float32)


def divided(state):
    """(trained, frozen) parameters as flat dicts."""
    flat = flatten(state)
    trained = {path: leaf for path, leaf in flat.items() if matches(path, TRAINED)}
    return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def loss(graph, trained, frozen, video, flow, weight):
    model = nnx.merge(graph, unflatten({**trained, **frozen}))
    found = model(video, flow, geometry=True, remat="full")
    return (jnp.square(found.logits) * weight).mean(), (
        found.logits,
        found.geometry.camera_poses,
        found.geometry.points,
    )


@functools.cache
def parameters(random_leaves):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: GeoMotion(CONFIG, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(random_leaves(shapes, seed=1))


@functools.cache
def on_one_device(random_leaves, clips):
    graph, state = parameters(random_leaves)
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    return jax.device_get(jax.jit(function)(*divided(state), *inputs(clips)))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_motion_geometry_and_gradients_do_not_depend_on_the_mesh(sizes, random_leaves):
    clips = CLIPS.get(sizes, 4)
    (wanted_loss, wanted), wanted_gradient = on_one_device(random_leaves, clips)
    graph, state = parameters(random_leaves)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    where = divided(shardings(state, SHARDING, DEFAULT_RULES, mesh))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "seq"))
    whole = NamedSharding(mesh, PartitionSpec())
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    with jax.set_mesh(mesh):
        step = pjit(
            function,
            in_shardings=(*where, rows, rows, rows),
            out_shardings=((whole, (rows, rows, rows)), where[0]),
        )
        placed = jax.tree.map(jax.device_put, divided(state), where)
        (found_loss, found), gradient = step(*placed, *inputs(clips))
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.std(theirs) > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
        assert len(ours.sharding.device_set) == 8
    largest = max(np.abs(leaf).max() for leaf in wanted_gradient.values())
    assert largest > 0
    for path, theirs in wanted_gradient.items():
        np.testing.assert_allclose(gradient[path], theirs, atol=1e-5 * largest, rtol=0, err_msg=path)
    cut = {re.sub(r"^pi3/", "", path).split("/")[0] for part in where for path, one in part.items() if any(one.spec)}
    expected = {"encoder", "decoder", "motion_aware_decoder", "point_decoder", "conf_decoder", "camera_decoder"}
    assert cut == expected


def test_heads_of_fused_projections_are_cut():
    mesh = make_mesh({"data": 1, "fsdp": 4, "seq": 1, "tensor": 2})
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: GeoMotion(CONFIG, rngs=nnx.Rngs(0)))))
    found = flatten(shardings(shapes, SHARDING, DEFAULT_RULES, mesh))
    kernel = found["pi3/decoder/across/attn/qkv/kernel"]
    assert kernel.spec == PartitionSpec(None, "fsdp", None, "tensor")
    assert found["pi3/encoder/blocks/mlp/down/kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert not any(found["pi3/camera_head/fc_rot/kernel"].spec)
