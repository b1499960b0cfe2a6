"""The block of vision transformers: its rotation, its gates, and how it lies on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.precision import MIXED, PARITY
from rvseg_jax.layers.rope import axis_angles, grid_angles, rotate_halves
from rvseg_jax.layers.vit_block import ViTBlock, images_apart
from rvseg_jax.parallel import current_rules


def tables(angles):
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


@pytest.mark.parametrize("axes", [1, 2])
def test_halves_turn_as_complex_numbers(axes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 3, 16)).astype(np.float32)
    angles = rng.uniform(-3, 3, (6, 8))
    ours = rotate_halves(jnp.asarray(x), *tables(angles), axes=axes)
    wanted = np.empty(x.shape)
    part = 16 // axes
    for axis in range(axes):
        piece, turn = x[..., axis * part : (axis + 1) * part], angles[:, axis * part // 2 : (axis + 1) * part // 2]
        turned = (piece[..., : part // 2] + 1j * piece[..., part // 2 :]) * np.exp(1j * turn)[:, None]
        wanted[..., axis * part : (axis + 1) * part] = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert rotate_halves(jnp.asarray(x, jnp.bfloat16), *tables(angles), axes=axes).dtype == jnp.bfloat16


def test_grids_may_count_from_one():
    shifted = grid_angles((2, 3), (4, 4), theta=100.0, first=1)
    rows, columns = (axis_angles(np.arange(1, size + 1), 4, theta=100.0) for size in (2, 3))
    np.testing.assert_array_equal(shifted[5], np.concatenate([rows[1], columns[2]]))
    np.testing.assert_array_equal(shifted[0], np.concatenate([rows[0], columns[0]]))


def test_what_is_not_asked_for_is_not_there():
    plain = nnx.eval_shape(lambda: ViTBlock(16, 2, precision=PARITY, rngs=nnx.Rngs(0)))
    whole = nnx.eval_shape(lambda: ViTBlock(16, 2, qk_norm=True, layer_scale=0.1, precision=PARITY, rngs=nnx.Rngs(0)))
    paths = [{"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(one))} for one in (plain, whole)]
    norms = {f"attn/{name}_norm/{leaf}" for name in "qk" for leaf in ("scale", "bias")}
    assert paths[1] - paths[0] == {"ls1", "ls2"} | norms


def test_factors_close_the_branches(random_leaves):
    abstract = nnx.eval_shape(lambda: ViTBlock(16, 2, layer_scale=0.1, precision=MIXED, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract)
    block = nnx.merge(graph, random_leaves(shapes))
    for scale in (block.ls1, block.ls2):
        scale[...] = jnp.zeros_like(scale[...])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 16)), jnp.bfloat16)
    graph, state = nnx.split(block)
    y = jax.jit(lambda state: nnx.merge(graph, state)(x))(state)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x)


def test_frames_take_the_axes_of_tokens():
    before = current_rules()
    with images_apart():
        inside = current_rules()
        assert inside["batch"] == ("data", "fsdp", "seq") and inside["seq"] is None
        with images_apart():
            assert current_rules() == inside
    assert current_rules() == before
