"""Text from prompts of different lengths in one batch: one compiled program reads them and writes the answers."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.layers.stack import Mode
from rvseg_jax.models.lm.cache import KVCache
from rvseg_jax.models.lm.decoder import LanguageModel, padded_behind
from rvseg_jax.models.lm.sampling import GenerationOptions, choose, ends

__all__ = ["Generated", "GenerationOptions", "bucket", "generate"]

_STEP = 64


@jax.tree_util.register_dataclass
@dataclass
class Generated:
    """Answers and the states that they came from.

    Attributes:
      tokens: int32 [B, N], the stop token last, `pad_token` behind it.
      lengths: int32 [B], tokens of each answer with its stop token.
      hidden: [B, N, D]; hidden[b, n] is the state whose scores gave tokens[b, n], zeros behind the end.
      prompt_hidden: [B, T, D], states of the prompt; those of padding have no meaning.
    """

    tokens: Any
    lengths: Any
    hidden: Any
    prompt_hidden: Any


class _Loop(NamedTuple):
    """What the loop over new tokens carries; `done` tells the rows whose answer has ended."""

    made: jax.Array
    cache: KVCache
    tokens: jax.Array
    hidden: jax.Array
    done: jax.Array
    seen: jax.Array | None


def bucket(length: int) -> int:
    """The length that `length` tokens are padded to: a multiple of 64, of 128 beyond 1,024, of 256 beyond 2,048, ...

    Prompts that come padded to it need no copy.
    """
    step = max(_STEP, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def generate(
    model: LanguageModel,
    embeddings: jax.Array,
    valid: np.ndarray | jax.Array,
    *,
    options: GenerationOptions,
    prompt_ids: np.ndarray | jax.Array | None = None,
    key: jax.Array | None = None,
    positions: jax.Array | None = None,
    mode: Mode = "scan",
) -> Generated:
    """Answers to prompts, each as if it were alone in the batch.

    New tokens take the same slots in all rows, behind the longest prompt, and continue the positions of their own row.
    One program is compiled for each bucket of prompt lengths and of new tokens; `options` other than `max_new_tokens`
    belong to it.

    Shapes: embeddings [B, T, D], valid bool [B, T], prompt_ids int [B, T], positions int [B, T] or [3, B, T].

    Args:
      embeddings: of the prompts, padded behind.
      valid: True for tokens of the prompts.
      prompt_ids: tokens that the repetition penalty counts beside the new ones.
      key: of the drawing; needed with a temperature.
      positions: by default the number of tokens before each in its row.
      mode: how the layers run, "scan" or "unroll".

    Raises:
      InputError: for an empty prompt, padding in front of a token, shapes that differ, or a temperature without key.
    """
    tokens = np.asarray(valid)
    _check(model, embeddings, tokens, prompt_ids, options, key)
    length, rows = embeddings.shape[1], tokens.shape[0]
    padded = bucket(length)
    if positions is None:
        positions = jnp.asarray(np.cumsum(tokens, axis=1, dtype=np.int32) - 1)
    seen = None
    if options.repetition_penalty != 1:
        seen = np.zeros((rows, model.cfg.vocab_size), bool)
        if prompt_ids is not None:
            row, place = np.nonzero(tokens)
            seen[row, np.asarray(prompt_ids)[row, place]] = True
    graph, state = nnx.split(model)
    capacity = bucket(options.max_new_tokens)
    found = _run(
        graph,
        replace(options, max_new_tokens=capacity),
        mode,
        state,
        _extended(embeddings, 1, padded),
        _extended(jnp.asarray(tokens), 1, padded),
        # Padding stays at the last position, so that a base that grows with the length sees that of the row.
        _extended(positions, -1, padded, mode="edge"),
        seen,
        key if options.temperature else None,
        np.int32(options.max_new_tokens),
    )
    new = options.max_new_tokens
    return Generated(
        found.tokens[:, :new], found.lengths, found.hidden[:, :new], _shortened(found.prompt_hidden, length)
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(graph, options, mode, state, embeddings, valid, positions, seen, key, limit):
    model: LanguageModel = nnx.merge(graph, state)
    capacity = options.max_new_tokens
    rows, length = valid.shape
    prompt, cache = model.prefill(embeddings, length + capacity, positions=positions, valid=valid, mode=mode)
    last = valid.sum(axis=1) - 1
    hidden = jnp.take_along_axis(prompt, last[:, None, None], axis=1)[:, 0]
    start = _Loop(
        made=jnp.zeros((), jnp.int32),
        cache=cache,
        tokens=jnp.full((rows, capacity), options.pad_token, jnp.int32),
        hidden=jnp.zeros((rows, capacity, prompt.shape[-1]), prompt.dtype),
        done=jnp.zeros((rows,), bool),
        seen=seen,
    )

    def another(loop: _Loop) -> jax.Array:
        return (loop.made < limit) & ~jnp.all(loop.done)

    def step(loop: _Loop) -> _Loop:
        token = jax.lax.dynamic_index_in_dim(loop.tokens, loop.made - 1, 1, keepdims=False)
        states, cache = model(model.embed(token[:, None]), valid=~loop.done[:, None], cache=loop.cache, mode=mode)
        return _emit(model, options, key, loop._replace(cache=cache), states[:, 0])

    loop = jax.lax.while_loop(another, step, _emit(model, options, key, start, hidden))
    # A row has a token wherever its answer had not ended, and all rows had one in every turn.
    stops = jax.vmap(lambda column: ends(column, options.stop_tokens), in_axes=1, out_axes=1)(loop.tokens)
    there = jnp.arange(capacity) < loop.made
    first = jnp.argmax(stops & there, axis=1) + 1
    lengths = jnp.where(loop.done, first, loop.made).astype(jnp.int32)
    return Generated(loop.tokens, lengths, loop.hidden, prompt)


def _emit(
    model: LanguageModel, options: GenerationOptions, key: jax.Array | None, loop: _Loop, hidden: jax.Array
) -> _Loop:
    """The loop with the token that follows from `hidden` [B, D] in every row that goes on."""
    drawn = None if key is None else jax.random.fold_in(key, loop.made)
    token = choose(model.logits(hidden), loop.seen, options, drawn)
    token = jnp.where(loop.done, options.pad_token, token)
    hidden = jnp.where(loop.done[:, None], jnp.zeros((), hidden.dtype), hidden)
    seen = None if loop.seen is None else loop.seen.at[jnp.arange(token.shape[0]), token].set(True)
    return loop._replace(
        made=loop.made + 1,
        tokens=jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, loop.made)),
        hidden=jax.lax.dynamic_update_slice(loop.hidden, hidden[:, None], (0, loop.made, 0)),
        done=loop.done | ends(token, options.stop_tokens),
        seen=seen,
    )


def _extended(array: jax.Array, axis: int, size: int, mode: str = "constant") -> jax.Array:
    missing = size - array.shape[axis]
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return jnp.pad(array, widths, mode=mode)


def _shortened(array: jax.Array, length: int) -> jax.Array:
    return array if array.shape[1] == length else array[:, :length]


def _check(model, embeddings, valid, prompt_ids, options, key) -> None:
    if embeddings.ndim != 3 or embeddings.shape[-1] != model.cfg.hidden_size:
        raise InputError(f"the embeddings have shape {embeddings.shape}: give [B, T, {model.cfg.hidden_size}]")
    for name, array in (("valid", valid), ("prompt_ids", prompt_ids)):
        if array is not None and tuple(array.shape) != embeddings.shape[:2]:
            raise InputError(f"{name} has shape {tuple(array.shape)}: give {embeddings.shape[:2]}")
    if valid.dtype != bool:
        raise InputError(f"valid is {valid.dtype}: give bool, True for tokens")
    if not valid.any(axis=1).all():
        raise InputError(f"prompt {int(np.argmin(valid.any(axis=1)))} has no token: give it at least one")
    if not padded_behind(valid):
        raise InputError("valid has padding in front of a token: move the padding of each row behind its tokens")
    if options.temperature and key is None:
        raise InputError(f"temperature {options.temperature} draws tokens: give a key, or temperature 0")
