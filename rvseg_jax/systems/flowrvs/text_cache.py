"""Encoded sentences on disk, so that a frozen text encoder reads each sentence once and then leaves the device."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.logging import get_logger
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.parts import bundle, parameters
from rvseg_jax.processing.text import Tokenizer, clean_text
from rvseg_jax.systems.flowrvs.loading import encode_stored
from rvseg_jax.systems.flowrvs.rows import CachedText
from rvseg_jax.zoo import resolve

FORMAT = 1  # raise it when rows change
BATCH = 64  # sentences encoded together
_LENGTHS = 16  # rows are padded to a multiple of it before they are encoded, so that few shapes are compiled

logger = get_logger(__name__)

Encode = Callable[[np.ndarray, np.ndarray], jax.Array]


def from_bits(states: jax.Array) -> jax.Array:
    """The bfloat16 numbers that `CachedText` gives as uint16."""
    return jax.lax.bitcast_convert_type(states, jnp.bfloat16)


def cached_text(
    path: str, sentences: Iterable[str], *, folder: str | Path, tokenizer: str | Path, text_length: int
) -> CachedText:
    """The cache at `path`, written first if it is missing or was made from something else.

    Args:
      sentences: every sentence that will be asked for.
      folder: a bundle or converted checkpoint that holds "umt5".
      tokenizer: tokenizer.json, or a folder with one.
      text_length: tokens at which a sentence is cut.

    Raises:
      InputError: if the folder or the tokenizer cannot be read.
    """
    from rvseg_jax.input_pipeline.records import description_of, write_records

    distinct = sorted({clean_text(sentence) for sentence in sentences})
    tokens = Tokenizer.from_file(resolve(tokenizer)).encode(distinct, text_length)
    encode, width = _encoder(folder)
    description = {
        "format": FORMAT,
        "encoder": parameters.fingerprint(folder, "umt5"),
        "sentences": len(distinct),
        # Ids rather than words: another tokenizer or length makes another cache.
        "ids": hashlib.sha256(np.ascontiguousarray(tokens.ids).tobytes()).hexdigest(),
        "texts": hashlib.sha256("\n".join(distinct).encode()).hexdigest(),
    }
    if description_of(path) != description:
        logger.info("encoding %d sentences into %s", len(distinct), path)
        write_records(path, _rows(encode, tokens.ids, tokens.lengths), description=description)
    return CachedText(str(path), {sentence: i for i, sentence in enumerate(distinct)}, text_length, width)


def _rows(encode: Encode, ids: np.ndarray, lengths: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(ids), BATCH):
        batch = np.minimum(np.arange(start, start + BATCH), len(ids) - 1)  # the last batch is filled up
        # Shorter padding leaves the rows of the tokens as they are.
        length = min(-(-int(lengths[batch].max()) // _LENGTHS) * _LENGTHS, ids.shape[1])
        mask = np.arange(length) < lengths[batch, None]
        states = np.asarray(encode(ids[batch, :length], mask).astype(jnp.bfloat16)).view(np.uint16)
        for own, tokens in zip(states[: len(ids) - start], lengths[start : start + BATCH], strict=True):
            yield {"states": own[:tokens]}


def _encoder(folder: str | Path) -> tuple[Encode, int]:
    """The encoder of a folder, and the width of its output; a converted one is read block by block."""
    resolved = resolve(folder)
    if bundle.is_bundle(resolved):
        model: Any = bundle.load_part(resolved, "umt5", BFLOAT16)
        graph, state = nnx.split(model)
        encode = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
        return lambda ids, mask: encode(state, ids, mask), model.cfg.d_model
    from rvseg_jax.convert import registry, store
    from rvseg_jax.convert.manifest import read_manifest

    part = registry.part("umt5")
    config = store.stored_config(part, store.part_record(resolved, read_manifest(resolved), "umt5"), BFLOAT16)
    return lambda ids, mask: encode_stored(resolved, config, ids, mask), config.d_model
