"""What planning must know of FlowRVS: a batch of its transformer stage, and what a step of it computes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rvseg_jax.core.config import ConfigError, from_dataclass
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.systems.flowrvs.rows import PIXELS
from rvseg_jax.systems.flowrvs.training import DiTConfig

TASK = "flowrvs.dit"
RECIPE = "flowrvs_mevis"
SIZES = {"1.3b": WanTransformerConfig.t2v_1_3b, "14b": WanTransformerConfig.t2v_14b}


def resize(config: ConfigDict, *, size: str | None, frames: int | None) -> None:
    """Sets the transformer of a recipe to a published size, and the frames of its clips."""
    if size is not None:
        if size not in SIZES:
            raise ConfigError(f"there is no Wan transformer of size {size!r}: choose {' or '.join(SIZES)}")
        sizes = SIZES[size]()
        published = from_dataclass(sizes)
        # Direct video injection is a choice of the recipe, not of the size.
        published.in_channels = sizes.in_channels * config.dit.in_channels // config.dit.out_channels
        config.dit = published
    if frames is not None:
        section = "data" if config.data.sets else "clips"
        config[section].frames = frames


def clip(config: DiTConfig) -> tuple[int, int, int]:
    """Frames, height and width of a training clip."""
    if config.data.sets:
        return config.data.frames, *config.data.box
    return config.clips.frames, *config.clips.size


def batch(config: DiTConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch as `SentenceRow` and the caches make them."""
    frames, height, width = clip(config)
    array = jax.ShapeDtypeStruct
    arrays: dict[str, jax.ShapeDtypeStruct] = {}
    if config.latent_cache:
        stride = config.vae.spatial_stride
        latents = ((frames - 1) // config.vae.temporal_stride + 1, height // stride, width // stride, config.vae.z_dim)
        for name in ("video_mean", "video_std", "mask_latents"):
            arrays[name] = array((rows, *latents), jnp.float16)
    else:
        arrays["frames"] = array((rows, frames, height, width, 3), jnp.uint8)
        arrays["masks"] = array((rows, frames, height, width), jnp.bool_)
    if config.data.sets:
        arrays["valid"] = array((rows, -(-height // PIXELS), -(-width // PIXELS)), jnp.bool_)
    if config.text_cache:
        arrays["text_states"] = array((rows, config.text_length, config.text.d_model), jnp.uint16)
    else:
        arrays["ids"] = array((rows, config.text_length), jnp.int32)
        arrays["text_mask"] = array((rows, config.text_length), jnp.bool_)
    return arrays


def encoders_in_step(config: DiTConfig, frozen: Mapping[str, Any]) -> dict[str, str]:
    """Where each encoder runs, in words."""
    places = {"vae": not config.latent_cache, "text": not config.text_cache}
    return {
        name: f"in the step, {'frozen' if name in frozen else 'trained'}"
        if inside
        else "not in the step: cached on disk"
        for name, inside in places.items()
    }
