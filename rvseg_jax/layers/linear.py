"""Linear layers, with an optional low-rank adapter."""

from dataclasses import dataclass

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
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


class Linear(nnx.Module):
    """y = x W + b, with W stored as [in, out].

    A new adapter is an exact no-op: `lora_a` is random and `lora_b` zero, as in PEFT.
    """

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
        if lora is not None:
            self.lora_a = nnx.Param(init(rngs.params(), (in_features, lora.rank), dtype))
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, out_features), dtype))
        self.lora = lora
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., in] -> [..., out], in the format of computation."""
        compute = self.precision.compute
        x = compute(x)
        y = jnp.matmul(x, compute(self.kernel[...]), precision=self.precision.matmul)
        if self.lora is not None:
            low = jnp.matmul(x, compute(self.lora_a[...]), precision=self.precision.matmul)
            y = y + self.lora.scale * jnp.matmul(low, compute(self.lora_b[...]), precision=self.precision.matmul)
        if self.bias is not None:
            y = y + compute(self.bias[...])
        return y
