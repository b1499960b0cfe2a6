"""Feed-forward blocks of transformers."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.linear import Linear

# `jax.nn.gelu` is the tanh form unless told otherwise, torch's is the exact one: both are named here.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        activation: str,
        use_bias: bool = True,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.up = Linear(in_features, hidden_features, use_bias=use_bias, precision=precision, rngs=rngs)
        self.down = Linear(hidden_features, out_features, use_bias=use_bias, precision=precision, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., in] -> [..., out]."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)), a gated linear unit (Shazeer 2020)."""

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str,
        use_bias: bool = False,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.gate = Linear(features, hidden_features, use_bias=use_bias, precision=precision, rngs=rngs)
        self.up = Linear(features, hidden_features, use_bias=use_bias, precision=precision, rngs=rngs)
        self.down = Linear(hidden_features, features, use_bias=use_bias, precision=precision, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., D] -> [..., D]."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
