"""Attention, resize and grid_sample give the same numbers on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.ops import Causal, Lengths, attention, grid_sample, resize
from rvseg_jax.parallel import batch_shardings, constrain, make_mesh, pjit

MESHES = [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def attend(backend: str, q, k, v, bias, lengths):
    q = constrain(q, "batch", "seq", "heads", None)
    k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
    out = attention(q, k, v, mask=Causal() & Lengths(lengths), bias=bias, backend=backend)
    return jnp.sum(constrain(out, "batch", "seq", "heads", None) ** 2)


def sample(x, grid):
    wide = resize(constrain(x, "batch", None, None, None), (9, 14), mode="bicubic")
    return jnp.sum(grid_sample(wide, grid, padding_mode="border", align_corners=False) ** 2)


ATTENTION = [draw(8, 24, 4, 8), draw(8, 24, 2, 8), draw(8, 24, 2, 8), draw(1, 4, 24, 24)]
LENGTHS = np.arange(17, 25)
SAMPLING = [draw(8, 5, 7, 3), draw(8, 6, 2)]


@functools.cache
def on_one_device(name: str):
    function, arguments = problem(name)
    return jax.device_get(jax.jit(function)(*arguments))


def problem(name: str):
    """Loss and gradients as one function, and its arguments."""
    if name == "sampling":
        return jax.value_and_grad(sample, (0, 1)), SAMPLING
    loss = functools.partial(attend, name, lengths=LENGTHS)
    return jax.value_and_grad(loss, (0, 1, 2, 3)), ATTENTION


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["reference", "chunked", "sampling"])
def test_loss_and_gradients_do_not_depend_on_the_mesh(name, sizes):
    mesh = make_mesh(dict(zip(("data", "fsdp", "seq", "tensor"), sizes, strict=True)))
    function, arguments = problem(name)
    whole = NamedSharding(mesh, PartitionSpec())
    of_batch = batch_shardings(draw(8, 1), mesh)
    shardings = tuple(whole if x.shape[0] == 1 else of_batch for x in arguments)
    with jax.set_mesh(mesh):
        step = pjit(function, in_shardings=shardings, out_shardings=(whole, shardings))
        loss, gradients = step(*arguments)
    expected_loss, expected = on_one_device(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for ours, theirs, sharding in zip(gradients, expected, shardings, strict=True):
        assert ours.sharding == sharding
        # Relative to the largest value: small ones are differences of large ones.
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
