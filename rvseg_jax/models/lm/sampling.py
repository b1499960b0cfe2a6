"""Choice of the next token from its scores, in the order and with the meaning of transformers' logits processors."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """How text is generated.

    Attributes:
      max_new_tokens: most tokens of an answer.
      temperature: divides the scores; 0 takes the best token (of equal ones that with the lowest id).
      top_k: tokens with the best scores that are drawn from, 0 for all; those equal to the last are kept too.
      top_p: share of probability that the tokens drawn from hold at least, 1 for all.
      repetition_penalty: divides positive scores, and multiplies negative ones, of tokens that are there already; 1
        changes nothing.
      stop_tokens: ids that end an answer, and are its last token.
      pad_token: id behind the end of an answer.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    pad_token: int = 0

    def __post_init__(self) -> None:
        bounds = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 (the best token) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        )
        for name, fits, wanted in bounds:
            if not fits:
                raise InputError(f"{name} {getattr(self, name)!r} must be {wanted}")


def penalised(scores: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Scores of the tokens in `seen` made worse (Keskar et al. 2019). Shapes: [B, V], bool [B, V] -> [B, V]."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def limited(scores: jax.Array, options: GenerationOptions) -> jax.Array:
    """Scores divided by the temperature, -inf for tokens that are not drawn from. Shapes: float32 [B, V] -> [B, V]."""
    scores = scores / options.temperature
    if not options.top_k and options.top_p == 1:
        return scores
    ascending = jnp.sort(scores, axis=-1)
    lowest = jnp.full_like(scores[:, :1], -jnp.inf)
    if options.top_k:
        count = min(options.top_k, scores.shape[-1])
        lowest = ascending[:, -count][:, None]
        ascending = jnp.where(ascending < lowest, -jnp.inf, ascending)
    if options.top_p < 1:
        below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
        # The best token stays whatever it holds.
        dropped = (below <= 1 - options.top_p).at[:, -1].set(False)
        lowest = jnp.maximum(lowest, jnp.min(jnp.where(dropped, jnp.inf, ascending), axis=-1, keepdims=True))
    return jnp.where(scores < lowest, -jnp.inf, scores)


def choose(scores: jax.Array, seen: jax.Array | None, options: GenerationOptions, key: jax.Array | None) -> jax.Array:
    """The next token of every row. Shapes: scores float32 [B, V], seen bool [B, V] -> int32 [B].

    Args:
      seen: tokens that are there already; needed with a repetition penalty.
      key: needed with a temperature.
    """
    if seen is not None:
        scores = penalised(scores, seen, options.repetition_penalty)
    if key is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, limited(scores, options), axis=-1).astype(jnp.int32)


def ends(tokens: jax.Array, stop_tokens: Sequence[int]) -> jax.Array:
    """Whether a token ends its answer. Shapes: int [B] -> bool [B]."""
    if not stop_tokens:
        return jnp.zeros(tokens.shape, bool)
    return jnp.any(tokens[:, None] == jnp.asarray(stop_tokens, tokens.dtype), axis=-1)
