"""Latents of training clips on disk, so that a frozen autoencoder encodes each clip once."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from rvseg_jax.core.logging import get_logger
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.systems.flowrvs import bundle
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import normalised_pixels
from rvseg_jax.systems.flowrvs.rows import clips_of, mask_frames

if TYPE_CHECKING:
    from rvseg_jax.systems.flowrvs.training import DiTConfig

BATCH = 8
FORMAT = 1  # raise it when rows change

logger = get_logger(__name__)


def cached_clips(config: "DiTConfig", system: FlowRVSConfig) -> Any:
    """The cache that a recipe names, written first if it is missing or was made from something else.

    Rows: {"video_mean", "video_std": float16 [t, h, w, Z], "mask_latents": float16 [2, t, h, w, Z],
    "texts": [2]}: the posterior of the clip, and for its two sentences the mean latent of the mask.

    Raises:
      ValueError: if the recipe names no pretrained autoencoder, or no number of clips.
    """
    from rvseg_jax.input_pipeline.records import Records, description_of, write_records
    from rvseg_jax.zoo import resolve

    folder = dict(config.pretrained).get("wan_vae")
    if not folder or config.cached_clips < 1:
        raise ValueError("a latent cache needs 'wan_vae' in pretrained, and cached_clips of at least 1")
    description = {
        "format": FORMAT,
        "autoencoder": bundle.fingerprint(resolve(folder), "wan_vae"),
        "clips": _plain(asdict(config.clips)),
        "count": config.cached_clips,
    }
    if description_of(config.latent_cache) != description:
        logger.info("encoding %d clips into %s", config.cached_clips, config.latent_cache)
        vae: Any = bundle.load_part(resolve(folder), "wan_vae", system.vae.precision)
        write_records(config.latent_cache, _rows(vae, config), description=description)
    return Records(config.latent_cache)


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _rows(vae: WanVAE, config: "DiTConfig") -> Iterator[dict[str, np.ndarray]]:
    graphdef, state = nnx.split(vae)

    @jax.jit
    def encode(state: nnx.State, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
        posterior = nnx.merge(graphdef, state).encode(normalised_pixels(clips))
        return posterior.mean, posterior.std

    clips = clips_of(config.clips, "train")
    for start in range(0, config.cached_clips, BATCH):
        samples = [clips[index] for index in range(start, min(start + BATCH, config.cached_clips))]
        videos = [sample.frames for sample in samples]
        masks = [mask_frames(mask) for sample in samples for mask in (sample.masks, sample.other_masks)]
        # The last batch is filled up, so that one shape is compiled.
        stacked = np.stack(videos + masks + [videos[0]] * (3 * (BATCH - len(samples))))
        means, deviations = (np.asarray(part, np.float16) for part in encode(state, stacked))
        for place, sample in enumerate(samples):
            first_mask = len(samples) + 2 * place
            yield {
                "video_mean": means[place],
                "video_std": deviations[place],
                "mask_latents": means[first_mask : first_mask + 2],
                "texts": np.array([sample.text, sample.other_text]),
            }
