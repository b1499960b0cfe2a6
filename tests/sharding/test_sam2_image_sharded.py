"""SAM 2's image half gives the same masks on every mesh, and each leaf lies where its table says."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from rvseg_jax import parallel
from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import SHARDING, Sam2
from rvseg_jax.models.sam2.prompt_encoder import Prompts
from rvseg_jax.parallel import batch_shardings, make_mesh, pjit

AXES = ("data", "fsdp", "seq", "tensor")
CONFIG = Sam2Config.tiny().image_only()
ROWS = 8


def inputs():
    """An image, two points and a mask for each of eight objects."""
    rng = np.random.default_rng(0)
    side = CONFIG.low_res_size
    points = rng.uniform(0, CONFIG.image_size, (ROWS, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (ROWS, 2)).astype(np.int32)
    masks = rng.standard_normal((ROWS, side, side)).astype(np.float32)
    images = rng.standard_normal((ROWS, CONFIG.image_size, CONFIG.image_size, 3)).astype(np.float32)
    return images, Prompts(points, labels, masks)


def on_mesh(mesh, random_leaves):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Sam2(CONFIG, rngs=nnx.Rngs(0))))
    state = nnx.to_pure_dict(random_leaves(shapes, seed=1))
    where = parallel.shardings(state, SHARDING, parallel.current_rules(), mesh)
    placed = jax.tree.map(jax.device_put, state, where)
    rows = batch_shardings(np.zeros((ROWS, 1)), mesh)

    def run(state, images, prompts):
        model = nnx.merge(graph, state)
        found = model.segment_image(model.encode_image(images), prompts, multimask_output=True)
        return found.masks, found.iou

    with jax.set_mesh(mesh):
        images, prompts = inputs()
        compiled = pjit(run, in_shardings=(where, rows, rows), out_shardings=(rows, rows))
        return where, compiled(placed, images, prompts)


@functools.cache
def on_one_device(random_leaves):
    _, found = on_mesh(make_mesh(devices=jax.devices()[:1]), random_leaves)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 2, 1, 2)], ids=str)
def test_masks_do_not_depend_on_the_mesh(sizes, random_leaves):
    where, found = on_mesh(make_mesh(dict(zip(AXES, sizes, strict=True))), random_leaves)
    for ours, expected in zip(found, on_one_device(random_leaves), strict=True):
        assert np.std(expected) > 0
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        assert len(ours.sharding.device_set) == 8
    cut = [path for path, one in flatten(where).items() if any(one.spec)]
    assert len(cut) > 40 and {path.split("/")[0] for path in cut} == {"image_encoder", "sam_mask_decoder"}
