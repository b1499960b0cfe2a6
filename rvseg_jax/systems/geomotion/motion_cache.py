"""Training clips on disk with the flow, and if it is wanted the features, that frozen networks find in them.

A row of the published sizes takes 3 MB for the flow and 150 MB for the features of 12 frames of 518 pixels, so that
features are for small models and few clips.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.parts import parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.systems.geomotion.flow import magnitudes_in_step

if TYPE_CHECKING:
    from rvseg_jax.systems.geomotion.training import MotionTrainingConfig

FORMAT = 1  # raise it when rows change
FEATURES = ("high", "low", "camera")

logger = get_logger(__name__)

Row = dict[str, np.ndarray]


def cached_rows(
    config: "MotionTrainingConfig",
    graphs: Mapping[str, nnx.GraphDef],
    params: Callable[[], Params],
    rows: Callable[[], Iterator[Mapping[str, Any]]],
) -> Any:
    """The cache that a recipe names, written first if it is missing or was made from something else.

    Rows: {"masks", "valid": bool [T, S, S], "flow": float16 [T, S, S]}, and "frames" uint8 [T, S, S, 3] or, with
    `cache_features`, "high", "low" and "camera", float16 [T, R + h w, ...] of `GeoMotion.features`.

    Args:
      graphs: of "geomotion" and "raft".
      params: gives their parameters.
      rows: gives the rows of the clips, in their order.

    Raises:
      InputError: if the recipe names no pretrained networks or no number of clips, or a feature is beyond float16.
    """
    from rvseg_jax.input_pipeline.records import Records, description_of, write_records

    folders = dict(config.pretrained)
    network = "pi3_motion" if "pi3_motion" in folders else "pi3"
    if "raft" not in folders or (config.cache_features and network not in folders) or config.cached_clips < 1:
        raise InputError("a cache needs raft, and for features pi3 or pi3_motion, in pretrained, and cached_clips")
    description: dict[str, Any] = {
        "format": FORMAT,
        "raft": parameters.fingerprint(folders["raft"], "raft"),
        "features": parameters.fingerprint(folders[network], network) if config.cache_features else None,
        "clips": {"sets": [list(pair) for pair in config.sets]} if config.sets else _plain(asdict(config.clips)),
        "frames": config.frames,
        "size": config.size,
        "count": config.cached_clips,
    }
    if description_of(config.cache) != description:
        logger.info("finding the flow of %d clips for %s", config.cached_clips, config.cache)
        found = _found(config, graphs, params(), rows())
        write_records(config.cache, found, description=description)
    return Records(config.cache)


def _found(
    config: "MotionTrainingConfig",
    graphs: Mapping[str, nnx.GraphDef],
    params: Params,
    rows: Iterator[Mapping[str, Any]],
) -> Iterator[Row]:
    @jax.jit
    def look(params: Params, frames: jax.Array) -> dict[str, jax.Array]:
        pixels = frames.astype(jnp.float32) / 255
        raft: Any = nnx.merge(graphs["raft"], params["raft"])
        seen = {"flow": magnitudes_in_step(raft, pixels)}
        if config.cache_features:
            network: Any = nnx.merge(graphs["geomotion"], params["geomotion"])
            features = network.features(pixels)
            seen |= {name: features.tokens.videos(getattr(features, name)) for name in FEATURES}
        return seen

    for row in rows:
        seen = {name: np.asarray(value[0]) for name, value in look(params, row["frames"][None]).items()}
        small = {name: value.astype(np.float16) for name, value in seen.items()}
        beyond = [name for name, value in small.items() if not np.isfinite(value).all()]
        if beyond:
            raise InputError(f"{beyond[0]} is beyond what float16 holds: train without a cache of it")
        kept = ("masks", "valid") if config.cache_features else ("frames", "masks", "valid")
        yield {name: np.asarray(row[name]) for name in kept} | small


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def as_stored(row: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
    """A row of the cache as a row of a batch."""
    del rng
    return row
