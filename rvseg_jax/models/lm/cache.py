"""Keys and values of tokens that a language model has read, in buffers of a fixed size."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.parallel import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """What attention needs of the tokens before, for all layers.

    New tokens of all rows take the same slots; a slot that holds padding in a row is not valid there.

    Attributes:
      keys, values: [L, B, S, K, H]; keys are rotated already.
      valid: bool [B, S], whether a slot holds a token of the row.
      filled: int32 [], slots in use; the next tokens go to filled, filled + 1, ...
      next_position: int32 [B], position of the next token where none is given.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    filled: jax.Array
    next_position: jax.Array

    @classmethod
    def empty(cls, cfg: LanguageModelConfig, batch: int, size: int, dtype: Any = None) -> "KVCache":
        """A cache without tokens.

        Args:
          size: slots of each row, S.
          dtype: of keys and values, the format of computation by default.
        """
        shape = (cfg.num_hidden_layers, batch, size, cfg.num_key_value_heads, cfg.head_width)
        zeros = jnp.zeros(shape, cfg.precision.compute_dtype if dtype is None else dtype)
        return cls(
            constrain_buffer(zeros),
            constrain_buffer(zeros),
            jnp.zeros((batch, size), bool),
            jnp.zeros((), jnp.int32),
            jnp.zeros((batch,), jnp.int32),
        )

    @property
    def size(self) -> int:
        """Slots of each row."""
        return self.keys.shape[2]

    def noted(self, valid: jax.Array, positions: jax.Array) -> "KVCache":
        """The cache after it has been told of new tokens, whose keys and values are still to be written.

        Shapes: valid bool [B, T], positions int [B, T] or [3, B, T].
        """
        places = positions if positions.ndim == 2 else positions.max(axis=0)
        last = jnp.max(jnp.where(valid, places, -1), axis=1).astype(jnp.int32)
        return replace(
            self,
            valid=jax.lax.dynamic_update_slice(self.valid, valid, (0, self.filled)),
            filled=self.filled + valid.shape[1],
            next_position=jnp.maximum(self.next_position, last + 1),
        )


def constrain_buffer(buffer: jax.Array) -> jax.Array:
    """Keys or values [L, B, S, K, H] laid out over the mesh in use."""
    return constrain(buffer, "layers", "batch", None, "kv_heads", None)


def written(buffer: jax.Array, new: jax.Array, layer: jax.Array, start: jax.Array | int) -> jax.Array:
    """`buffer` [L, B, S, K, H] with `new` [B, T, K, H] in the slots of a layer from `start` on."""
    return jax.lax.dynamic_update_slice(buffer, new[None].astype(buffer.dtype), (layer, 0, start, 0, 0))
