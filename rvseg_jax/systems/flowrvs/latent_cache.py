"""Latents of training clips on disk, so that a frozen autoencoder encodes each clip once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from rvseg_jax.core.logging import get_logger
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.parts import parameters
from rvseg_jax.systems.flowrvs import data
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import normalised_pixels
from rvseg_jax.systems.flowrvs.rows import clips_of, latent_validity, mask_frames

if TYPE_CHECKING:
    from rvseg_jax.systems.flowrvs.training import DiTConfig

CLIPS, BATCH = 16, 8  # clips whose latents are held at once, and clips in one call of the encoder
FORMAT = 4  # raise it when rows change

logger = get_logger(__name__)

Latents = Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Draw:
    """A clip as it goes into the cache, with its sentences.

    Attributes:
      frames: uint8 [T, H, W, 3].
      masks: bool [M, T, H, W].
      texts: K sentences.
      mask_of: which mask each of them names.
      weights: how often each is to be drawn.
      valid: bool [h, w] of the latents that are no padding, where there is any.
    """

    frames: np.ndarray
    masks: list[np.ndarray]
    texts: list[str]
    mask_of: list[int]
    weights: list[float]
    valid: np.ndarray | None = None


def cached_clips(config: "DiTConfig", system: FlowRVSConfig, seed: int = 0) -> Any:
    """The cache that a recipe names, written first if it is missing or was made from something else.

    Rows: {"video_mean", "video_std": float16 [t, h, w, Z], "mask_latents": float16 [M, t, h, w, Z],
    "texts": [K], "mask_of": int32 [K], "weights": float32 [K]}: the posterior of the clip, the mean latents of its
    masks, and K sentences, each with its mask and how often it is to be drawn; and "valid" bool [h, w] where clips
    are padded. Clips of real videos are augmented draws, each with its one sentence.

    Args:
      seed: of those draws.

    Raises:
      ValueError: if the recipe names no pretrained autoencoder, or no number of clips.
    """
    from rvseg_jax.input_pipeline.records import Records, description_of, write_records

    folder = dict(config.pretrained).get("wan_vae")
    if not folder or config.cached_clips < 1:
        raise ValueError("a latent cache needs 'wan_vae' in pretrained, and cached_clips of at least 1")
    origin = {"data": asdict(config.data), "seed": seed} if config.data.sets else {"clips": asdict(config.clips)}
    description = {
        "format": FORMAT,
        "autoencoder": parameters.fingerprint(folder, "wan_vae"),
        "count": config.cached_clips,
        **_plain(origin),
    }
    if description_of(config.latent_cache) != description:
        logger.info("encoding %d clips into %s", config.cached_clips, config.latent_cache)
        state = parameters.read(folder, "wan_vae", system.vae.precision)
        draws = _draws_of_videos(config, seed) if config.data.sets else _draws_of_shapes(config)
        graph = parameters.graph_of(lambda rngs: WanVAE(system.vae, rngs=rngs))
        write_records(config.latent_cache, _rows(_encoder(graph, state), draws), description=description)
    return Records(config.latent_cache)


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _draws_of_shapes(config: "DiTConfig") -> Iterator[Draw]:
    """Clips of moving_shapes with all that can be said of them."""
    source = clips_of(config.clips, "train")
    for index in range(config.cached_clips):
        sample = source[index]
        referrals = sample.referrals()
        named = sorted({referral.ids for referral in referrals} | {()})
        yield Draw(
            frames=sample.frames,
            masks=[sample.masks_of(ids) for ids in named],
            texts=[referral.text for referral in referrals],
            mask_of=[named.index(referral.ids) for referral in referrals],
            weights=[referral.weight for referral in referrals],
        )


def _draws_of_videos(config: "DiTConfig", seed: int) -> Iterator[Draw]:
    """Augmented clips of real videos."""
    source = data.training_source(config.data)
    transform = data.training_samples(config.data, source)
    for index in range(config.cached_clips):
        sample = transform(source[index % len(source)], np.random.default_rng((seed, index)))
        yield Draw(sample.frames, [sample.masks], [sample.text], [0], [1.0], latent_validity(sample))


def _encoder(graph: nnx.GraphDef, state: parameters.Params) -> Latents:
    @jax.jit
    def encode(state: parameters.Params, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
        posterior = nnx.merge(graph, state).encode(normalised_pixels(clips))
        return posterior.mean, posterior.std

    def latents(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        # The last batch is filled up, so that one shape is compiled.
        padded = clips + clips[:1] * (-len(clips) % BATCH)
        parts = [encode(state, np.stack(padded[i : i + BATCH])) for i in range(0, len(padded), BATCH)]
        mean, deviation = (np.concatenate(of) for of in zip(*parts, strict=True))
        return mean[: len(clips)].astype(np.float16), deviation[: len(clips)].astype(np.float16)

    return latents


def _rows(latents: Latents, draws: Iterable[Draw]) -> Iterator[dict[str, np.ndarray]]:
    empty: np.ndarray | None = None  # every clip has the same latent of a mask of nothing
    stream = iter(draws)
    while group := list(islice(stream, CLIPS)):
        if empty is None:
            empty = latents([mask_frames(np.zeros_like(group[0].masks[0]))])[0]
        masks = [mask_frames(mask) for draw in group for mask in draw.masks if mask.any()]
        mean, deviation = latents([draw.frames for draw in group] + masks)
        encoded = iter(mean[len(group) :])
        for place, draw in enumerate(group):
            row = {
                "video_mean": mean[place],
                "video_std": deviation[place],
                "mask_latents": np.stack([next(encoded) if mask.any() else empty[0] for mask in draw.masks]),
                "texts": np.array(draw.texts),
                "mask_of": np.array(draw.mask_of, np.int32),
                "weights": np.array(draw.weights, np.float32),
            }
            yield row if draw.valid is None else row | {"valid": draw.valid}
