"""3-D convolutions computed as 2-D ones equal the native ones, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.layers.conv import CausalConv3d, Conv

# Both sum the same products in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def pair(**options) -> tuple[Conv, Conv]:
    """The same convolution, native and folded."""
    return tuple(Conv(3, 4, impl=impl, rngs=nnx.Rngs(0), **options) for impl in ("native", "folded"))


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), [(0, 0), (1, 1), (1, 1)]),
        ((3, 1, 1), (2, 1, 1), "VALID"),
        ((3, 2, 3), (2, 1, 2), [(1, 0), (0, 1), (1, 1)]),
        ((1, 3, 3), (1, 2, 2), "VALID"),
        ((2, 2, 2), (2, 2, 2), "VALID"),
    ],
)
def test_folded_equals_native(window, strides, padding):
    native, folded = pair(kernel_size=window, strides=strides, padding=padding, precision=PARITY)
    x = jax.random.normal(jax.random.key(1), (2, 7, 6, 8, 3))
    weight = jax.random.normal(jax.random.key(2), native(x).shape)

    def loss(layer: Conv, x: jax.Array) -> jax.Array:
        return jnp.sum(layer(x) * weight)

    np.testing.assert_allclose(folded(x), native(x), **TOLERANCE)
    for ours, expected in zip(
        jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(folded, x)),
        jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(native, x)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)


def test_bfloat16_keeps_its_format():
    native, folded = pair(kernel_size=(3, 3, 3), precision=BFLOAT16)
    x = jax.random.normal(jax.random.key(1), (1, 5, 6, 6, 3))
    assert folded(x).dtype == native(x).dtype == jnp.bfloat16
    # One rounding of the result to 8 bits each.
    np.testing.assert_allclose(
        np.asarray(folded(x), np.float32), np.asarray(native(x), np.float32), rtol=1e-2, atol=1e-2
    )


def test_auto_folds_on_cpu_only(monkeypatch):
    layer = CausalConv3d(2, 3, (3, 3, 3), precision=PARITY, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 4, 4, 2))
    assert _kernel_ranks(lambda x: layer(x), x) == [4]
    monkeypatch.setattr("rvseg_jax.layers.conv.platform", lambda: "tpu")
    assert _kernel_ranks(lambda x: layer(x), x) == [5]


def _kernel_ranks(function, x: jax.Array) -> list[int]:
    equations = jax.make_jaxpr(function)(x).jaxpr.eqns
    return [eqn.invars[1].aval.ndim for eqn in equations if eqn.primitive.name == "conv_general_dilated"]


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="unknown convolution 'fast'"):
        Conv(1, 1, (3,), impl="fast", precision=PARITY, rngs=nnx.Rngs(0))
