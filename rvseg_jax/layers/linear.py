"""Linear layers, with an optional low-rank adapter."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapter of a linear layer: y = x W + (alpha / rank) (x A) B (Hu et al. 2021, section 4.1).

    Attributes:
      rank: inner width of the adapter.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: share of the adapter's inputs that are zeroed while it has keys, see `layers.lora.with_dropout`.
    """

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"{self}: the rank must be 1 or more, the dropout at least 0 and below 1")

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


class DropoutKey(nnx.Variable):
    """Random key of an adapter's dropout, one a layer of a stack; it is there during a training step only."""


class Linear(nnx.Module):
    """y = x W + b, with W stored as [in, out].

    A new adapter is an exact no-op: `lora_a` is random and `lora_b` zero, as in PEFT.
    """

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_key: DropoutKey

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        lora: LoraSpec | None = None,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.lecun_normal()
        dtype = precision.param_dtype
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if use_bias else None
        self.lora: LoraSpec | None = None
        self.precision = precision
        if lora is not None:
            self.adapt(lora, rngs=rngs, dtype=dtype)

    def adapt(self, spec: LoraSpec, *, rngs: nnx.Rngs, dtype: Any) -> None:
        """Adds a new adapter with numbers of format `dtype`, also to the stacked kernels [L, in, out] of a stack."""
        *layers, inputs, outputs = self.kernel.shape
        # PEFT's kaiming_uniform_(a=sqrt(5)).
        bound = inputs**-0.5
        drawn = jax.random.uniform(rngs.params(), (*layers, inputs, spec.rank), jnp.float32, -bound, bound)
        self.lora_a = nnx.Param(drawn.astype(dtype))
        self.lora_b = nnx.Param(jnp.zeros((*layers, spec.rank, outputs), dtype))
        self.lora = spec

    def __call__(self, x: jax.Array, *, dtype: Any = None) -> jax.Array:
        """Shapes: x [..., in] -> [..., out].

        Args:
          dtype: format in which products are summed and returned, that of computation by default.
        """
        compute = self.precision.compute
        x = compute(x)
        y = self._product(x, self.kernel, dtype)
        if self.lora is not None:
            low = self._product(self._dropped(x, self.lora.dropout), self.lora_a)
            y = y + self.lora.scale * self._product(low, self.lora_b, dtype)
        if self.bias is not None:
            y = y + compute(self.bias[...])
        return y

    def _product(self, x: jax.Array, matrix: nnx.Param, dtype: Any = None) -> jax.Array:
        compute = self.precision.compute
        return jnp.matmul(x, compute(matrix[...]), precision=self.precision.matmul, preferred_element_type=dtype)

    def _dropped(self, x: jax.Array, share: float) -> jax.Array:
        key = getattr(self, "lora_key", None)
        if key is None or not share:
            return x
        # Fused into what reads it, the draw is repeated there, and TPU's compiler takes several times as long.
        kept = jax.lax.optimization_barrier(jax.random.bernoulli(key[...], 1 - share, x.shape))
        return jnp.where(kept, x / (1 - share), jnp.zeros((), x.dtype))
