"""What planning knows of FlowRVS: a batch of its transformer stage, and what a step of it does."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rvseg_jax.core.config import from_dataclass
from rvseg_jax.models.umt5 import encoder as umt5
from rvseg_jax.models.wan.flops import TrainingFlops, training_flops
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import encode_flops
from rvseg_jax.planning.step import PlannedStep
from rvseg_jax.planning.systems import Cuts, Sample, published
from rvseg_jax.planning.work import (
    KERNEL_PRODUCTS,
    Blocks,
    Work,
    kernel_of,
    largest_layer,
    samples_of,
    whole_bytes,
)
from rvseg_jax.systems.flowrvs import memory
from rvseg_jax.systems.flowrvs.rows import PIXELS
from rvseg_jax.systems.flowrvs.training import DiTConfig

TASK = "flowrvs.dit"
RECIPE = "flowrvs_mevis"
SIZES = {"1.3b": WanTransformerConfig.t2v_1_3b, "14b": WanTransformerConfig.t2v_14b}
# Times that an encoder level's features go to memory or come from it: two blocks of two convolutions, norms and
# activations, read and written.
_VAE_PASSES = 16


def resize(config: ConfigDict, *, size: str | None, frames: int | None) -> None:
    """Sets the transformer of a recipe to a published size, and the frames of its clips."""
    if size is not None:
        sizes = published(SIZES, size, "Wan transformer")
        dit = from_dataclass(sizes)
        # Direct video injection is a choice of the recipe, not of the size.
        dit.in_channels = sizes.in_channels * config.dit.in_channels // config.dit.out_channels
        config.dit = dit
    if frames is not None:
        section = "data" if config.data.sets else "clips"
        config[section].frames = frames


def clip(config: DiTConfig) -> tuple[int, int, int]:
    """Frames, height and width of a training clip."""
    if config.data.sets:
        return config.data.frames, *config.data.box
    return config.clips.frames, *config.clips.size


def sample(own: DiTConfig) -> Sample:
    """A clip."""
    frames, height, width = clip(own)
    return Sample("clips", f"clips of {frames} frames at {height}x{width}")


def batch(own: DiTConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch as `SentenceRow` and the caches make them."""
    frames, height, width = clip(own)
    array = jax.ShapeDtypeStruct
    arrays: dict[str, jax.ShapeDtypeStruct] = {}
    if own.latent_cache:
        stride = own.vae.spatial_stride
        latents = ((frames - 1) // own.vae.temporal_stride + 1, height // stride, width // stride, own.vae.z_dim)
        for name in ("video_mean", "video_std", "mask_latents"):
            arrays[name] = array((rows, *latents), jnp.float16)
    else:
        arrays["frames"] = array((rows, frames, height, width, 3), jnp.uint8)
        arrays["masks"] = array((rows, frames, height, width), jnp.bool_)
    if own.data.sets:
        arrays["valid"] = array((rows, -(-height // PIXELS), -(-width // PIXELS)), jnp.bool_)
    if own.text_cache:
        arrays["text_states"] = array((rows, own.text_length, own.text.d_model), jnp.uint16)
    else:
        arrays["ids"] = array((rows, own.text_length), jnp.int32)
        arrays["text_mask"] = array((rows, own.text_length), jnp.bool_)
    return arrays


def parts(step: PlannedStep) -> dict[str, str]:
    """Where each encoder runs."""
    return encoders_in_step(step.own, step.target.frozen)


def encoders_in_step(config: DiTConfig, frozen: Mapping[str, Any]) -> dict[str, str]:
    """Where each encoder runs, in words."""
    places = {"vae": not config.latent_cache, "text": not config.text_cache}
    return {
        name: f"in the step, {'frozen' if name in frozen else 'trained'}"
        if inside
        else "not in the step: cached on disk"
        for name, inside in places.items()
    }


def cuts(own: DiTConfig) -> Cuts:
    """Heads and tokens of the DiT."""
    return Cuts(own.dit.num_attention_heads, tokens_of(own))


def tokens_of(config: DiTConfig) -> int:
    """Tokens that the DiT sees of a training clip."""
    frames, height, width = clip(config)
    vae, patch = config.vae, config.dit.patch_size
    cells = ((frames - 1) // vae.temporal_stride + 1, height // vae.spatial_stride, width // vae.spatial_stride)
    return math.prod(cell // size for cell, size in zip(cells, patch, strict=True))


def dit_flops(config: DiTConfig, kernel: str) -> TrainingFlops:
    """Operations of the DiT for one sample."""
    return training_flops(
        config.dit,
        tokens_of(config),
        config.text_length,
        remat=config.remat,
        kernel_products=KERNEL_PRODUCTS[kernel],
    )


def work(step: PlannedStep, sizes: Mapping[str, int]) -> Work:
    """The DiT forward and backward, the autoencoder and the text encoder forward."""
    config: DiTConfig = step.own
    samples, itemsize = samples_of(step, sizes), step.itemsize
    dit = _blocks(step, sizes)
    passes, pixels = [dit.kept + dit.widest], 0
    if "frames" in step.batch:
        frames, height, width = clip(config)
        passes.append(samples * memory.vae_bytes(step.task.system, frames, (height, width)))  # type: ignore[attr-defined]
        pixels = 2 * samples * frames * height * width * config.vae.base_dim * itemsize * _VAE_PASSES
    flops = _flops(step, kernel_of(sizes))
    frozen = step.target.frozen
    return Work(
        flops=flops,
        # Samples are not cut in the autoencoder.
        repeated={"vae": "encode the same clips"} if flops["vae"] else {},
        temporaries=max(passes),
        runs=(dit,),
        gathers=2 + (config.remat == "full" and config.dit.num_layers > 0),
        read=whole_bytes(frozen) / sizes["tensor"],
        gathered=whole_bytes(frozen.get("text", {})) / sizes["tensor"],
        traffic=pixels,
    )


def _blocks(step: PlannedStep, sizes: Mapping[str, int]) -> Blocks:
    """The DiT on one device."""
    config: DiTConfig = step.own
    return Blocks(
        layers=config.dit.num_layers,
        tokens=samples_of(step, sizes) * (tokens_of(config) // sizes["seq"]),
        width=config.dit.inner_dim,
        whole=memory.DIT_WIDTHS * config.dit.inner_dim,
        cut=memory.DIT_FFN_WIDTHS * config.dit.ffn_dim,
        itemsize=step.itemsize,
        tensor=sizes["tensor"],
        largest=largest_layer(step.target.params["dit"]["blocks"]),
        remat=config.remat,
    )


def _flops(step: PlannedStep, kernel: str) -> dict[str, int]:
    config: DiTConfig = step.own
    dit = dit_flops(config, kernel)
    vae = 0 if "frames" not in step.batch else 2 * encode_flops(config.vae, *clip(config))
    text = 0 if "ids" not in step.batch else umt5.flops(config.text, config.text_length)
    if "text" in step.target.params:
        text *= 3
    of_one = {
        "dit_forward": dit.forward,
        "dit_backward": dit.backward,
        "recomputed": dit.recomputed,
        "vae": vae,
        "text": text,
    }
    return {name: step.settings.batch_size * count for name, count in of_one.items()}
