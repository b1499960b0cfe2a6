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

CLIPS, BATCH = 16, 8  # clips whose latents are held at once, and clips in one call of the encoder
FORMAT = 2  # raise it when rows change

logger = get_logger(__name__)


def cached_clips(config: "DiTConfig", system: FlowRVSConfig) -> Any:
    """The cache that a recipe names, written first if it is missing or was made from something else.

    Rows: {"video_mean", "video_std": float16 [t, h, w, Z], "mask_latents": float16 [M, t, h, w, Z],
    "texts": [K], "mask_of": int32 [K], "weights": float32 [K]}: the posterior of the clip, the mean latents of its
    masks, and K sentences, each with its mask and how often it is to be drawn.

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

    def latents(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        # The last batch is filled up, so that one shape is compiled.
        padded = clips + clips[:1] * (-len(clips) % BATCH)
        parts = [encode(state, np.stack(padded[i : i + BATCH])) for i in range(0, len(padded), BATCH)]
        mean, deviation = (np.concatenate(of) for of in zip(*parts, strict=True))
        return mean[: len(clips)].astype(np.float16), deviation[: len(clips)].astype(np.float16)

    source = clips_of(config.clips, "train")
    nothing = np.zeros((config.clips.frames, *config.clips.size), bool)
    empty = latents([mask_frames(nothing)])[0]
    for start in range(0, config.cached_clips, CLIPS):
        samples = [source[index] for index in range(start, min(start + CLIPS, config.cached_clips))]
        sentences = [sample.referrals() for sample in samples]
        named = [sorted({referral.ids for referral in of if referral.ids}) for of in sentences]
        masks = [mask_frames(s.masks_of(ids)) for s, of in zip(samples, named, strict=True) for ids in of]
        mean, deviation = latents([sample.frames for sample in samples] + masks)
        next_mask = len(samples)
        for place, (referrals, ids) in enumerate(zip(sentences, named, strict=True)):
            here = [(), *ids]
            yield {
                "video_mean": mean[place],
                "video_std": deviation[place],
                "mask_latents": np.concatenate([empty, mean[next_mask : next_mask + len(ids)]]),
                "texts": np.array([referral.text for referral in referrals]),
                "mask_of": np.array([here.index(referral.ids) for referral in referrals], np.int32),
                "weights": np.array([referral.weight for referral in referrals], np.float32),
            }
            next_mask += len(ids)
