"""Number formats of parameters and computation, in one object that every module carries."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Precision:
    """Formats of a module; normalisation statistics, softmax, RoPE angles and losses are always float32.

    Attributes:
      param_dtype: format in which parameters are stored.
      compute_dtype: format of activations and of the operands of matrix products.
      matmul: precision of matrix products and convolutions as in `jax.lax.Precision`: "highest" keeps
        all float32 bits on TPU and GPU, None is the platform's default.
    """

    param_dtype: Any = jnp.float32
    compute_dtype: Any = jnp.float32
    matmul: str | None = None

    def compute(self, array: jax.Array) -> jax.Array:
        """`array` in the format of computation."""
        return jnp.asarray(array, self.compute_dtype)

    def in_float32(self) -> "Precision":
        """The same with float32 computation, for what the originals keep out of autocast."""
        return replace(self, compute_dtype=jnp.float32)


PARITY = Precision(matmul="highest")
FLOAT32 = Precision()
BFLOAT16 = Precision(param_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16)
MIXED = Precision(param_dtype=jnp.float32, compute_dtype=jnp.bfloat16)

_BY_NAME = {"parity": PARITY, "float32": FLOAT32, "bfloat16": BFLOAT16, "mixed": MIXED}


def by_name(name: str) -> Precision:
    """The policy called `name`: "parity", "float32", "bfloat16" or "mixed" (float32 parameters, bfloat16 compute).

    Raises:
      ValueError: for any other name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown precision {name!r}: choose one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
