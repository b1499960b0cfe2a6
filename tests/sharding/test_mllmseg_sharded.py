"""MLLMSeg's training loss gives the same on every mesh: images cut, tokens cut, weights cut."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.layers import lora
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.model import SHARDING, MLLMSeg, image_states, states_before
from rvseg_jax.parallel import AXES, DEFAULT_RULES, make_mesh, pjit, shardings
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig, mask_losses, text_loss

TINY = MLLMSegConfig.tiny()
IMAGE = 100
# Everything cut; a step compiles for half a minute.
MESHES = [(1, 2, 2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1, 8, 1, 1), (2, 2, 1, 2)))]


def inputs():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 90, (8, 16)).astype(np.int32)
    ids[:, 3:7] = IMAGE
    return {
        "image": rng.standard_normal((8, 56, 56, 3)).astype(np.float32),
        "ids": ids,
        "marks": rng.integers(8, 15, (8, 2)).astype(np.int32),
        "masks": rng.random((8, 2, 56, 56)) < 0.4,
        "drawn": np.tile([[True, False], [True, True]], (4, 1)),
    }


def loss(graph, params, batch):
    model = nnx.merge(graph, params)
    is_image = batch["ids"] == IMAGE
    patches, hidden = model.read(batch["image"], batch["ids"], is_image, remat="full")
    decoder = model.mask_decoder
    fused = decoder.fuse(patches, image_states(hidden, is_image, 4))
    logits, seen = decoder.logits(
        decoder.features(fused, states_before(hidden, batch["marks"])), counted=batch["drawn"]
    )
    text = text_loss(model.internvl.language.logits(hidden), batch["ids"], batch["ids"] < IMAGE)
    sizes = np.full((8, 2), 56)
    terms = mask_losses(MaskLossConfig(), logits, batch["masks"], batch["drawn"], np.ones((8, 2), bool), sizes)
    return text + terms["focal"] + terms["dice"], (logits, seen.mean)


@functools.cache
def parameters(random_leaves):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: MLLMSeg(TINY, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(random_leaves(shapes, seed=1))


@functools.cache
def on_one_device(random_leaves):
    graph, params = parameters(random_leaves)
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    return jax.device_get(jax.jit(function)(params, inputs()))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes, random_leaves):
    (wanted_loss, wanted), wanted_gradient = on_one_device(random_leaves)
    graph, params = parameters(random_leaves)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    where = shardings(params, lora.sharding(SHARDING), DEFAULT_RULES, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    with jax.set_mesh(mesh):
        step = pjit(function, in_shardings=(where, rows), out_shardings=((whole, (rows, rows)), where))
        (found_loss, found), gradient = step(jax.tree.map(jax.device_put, params, where), inputs())
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
    gradient, wanted_gradient = flatten(gradient), flatten(wanted_gradient)
    largest = max(np.abs(leaf).max() for leaf in wanted_gradient.values())
    assert largest > 0
    for path, theirs in wanted_gradient.items():
        np.testing.assert_allclose(gradient[path], theirs, atol=1e-5 * largest, rtol=0, err_msg=path)
    cut = {path.split("/")[1] for path, one in flatten(where).items() if any(one.spec)}
    assert cut == {"vision", "language", "projector"}
