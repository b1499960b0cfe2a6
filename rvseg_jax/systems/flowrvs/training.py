"""The stage in which FlowRVS's transformer is trained; the protocol is `training.tasks.Task`.

flowrvs.dit  the transformer, autoencoder and text encoder frozen (or a small text encoder trained with it)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision, by_name
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapesConfig
from rvseg_jax.layers import stack
from rvseg_jax.models.umt5.encoder import SHARDING as TEXT_SHARDING
from rvseg_jax.models.umt5.encoder import UMT5Config, UMT5Encoder
from rvseg_jax.models.wan.transformer import SHARDING as DIT_SHARDING
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae import SHARDING as VAE_SHARDING
from rvseg_jax.models.wan.vae import Posterior, WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.parallel.rules import Table, prefixed
from rvseg_jax.parts import parameters
from rvseg_jax.systems.flowrvs import bundle, data, flow, losses, text_cache
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.data import DatasetsConfig
from rvseg_jax.systems.flowrvs.inference import normalised_pixels, state_input
from rvseg_jax.systems.flowrvs.injection import widened_patch_kernel
from rvseg_jax.systems.flowrvs.rows import SentenceRow, clips_of
from rvseg_jax.systems.flowrvs.validation import Validator, region_similarity
from rvseg_jax.zoo import resolve

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Params = parameters.Params


@dataclass(frozen=True)
class DiTConfig:
    """Transformer stage.

    Attributes:
      dit, vae, text: sizes of the parts; `dit.in_channels` twice the latent's means direct video injection.
      text_length: tokens to which a sentence is padded.
      tokenizer: tokenizer.json, or a folder with one; "zoo/..." is bundled.
      clips: training clips of moving_shapes, where `data` names no datasets.
      data: datasets on disk to train on.
      pretrained: pairs (part, folder) for "wan_vae", "wan_dit" or "umt5"; the folder is an earlier stage's export
        or a converted checkpoint.
      encoder_precision: number formats of the autoencoder and the text encoder, where they differ from the run's.
      longest_sentence: most words of the sentences that are drawn, to begin with short ones; 0 draws any.
      boundary_probability: share of training times at the start of the path (BBS).
      sample_start: whether the video latent is a sample of the posterior rather than its mean (SPA).
      mask_latent_space: see `FlowRVSConfig`.
      text_cache: file in which the sentences of `data` are kept encoded; it is written when it is missing or was
        made from something else. The text encoder then takes no part in training.
      remat: what the backward pass through the DiT recomputes, see `layers.stack.run`.
      latent_cache: file in which latents of `cached_clips` clips are kept; it is written when it is missing
        or was made from something else. "" encodes in every step.
      cached_clips: clips in the cache.
      validation_clips: clips that `evaluate` scores.
    """

    dit: WanTransformerConfig = WanTransformerConfig()
    vae: WanVAEConfig = WanVAEConfig(out_channels=1)
    text: UMT5Config = UMT5Config()
    text_length: int = 256
    tokenizer: str = ""
    clips: MovingShapesConfig = MovingShapesConfig()
    data: DatasetsConfig = DatasetsConfig()
    pretrained: tuple[tuple[str, str], ...] = ()
    encoder_precision: Literal["", "float32", "bfloat16"] = ""
    longest_sentence: int = 0
    boundary_probability: float = 0.5
    sample_start: bool = True
    mask_latent_space: Literal["raw", "normalised"] = "raw"
    remat: stack.Remat = "full"
    text_cache: str = ""
    latent_cache: str = ""
    cached_clips: int = 0
    validation_clips: int = 64

    def __post_init__(self) -> None:
        if self.text_cache and not (self.data.sets and "umt5" in dict(self.pretrained)):
            raise ValueError("text_cache needs datasets in data.sets and 'umt5' in pretrained")


class DiTTask:
    """Velocity from the video latent to the mask latent, given the sentence."""

    Config = DiTConfig
    sharding_table: Table = (
        *prefixed(DIT_SHARDING, "dit"),
        *prefixed(VAE_SHARDING, "vae"),
        *prefixed(TEXT_SHARDING, "text"),
    )

    def __init__(self, config: DiTConfig, *, precision: Precision) -> None:
        self.config = config
        encoders = by_name(config.encoder_precision) if config.encoder_precision else precision
        system = FlowRVSConfig(
            dit=config.dit,
            vae=config.vae,
            text=config.text,
            text_length=config.text_length,
            box=config.data.box if config.data.sets else config.clips.size,
            mask_latent_space=config.mask_latent_space,
        ).with_precision(encoders)
        self.system = replace(system, dit=replace(system.dit, precision=precision))
        self._models: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
            "dit": lambda rngs: WanTransformer(self.system.dit, rngs=rngs),
            "vae": lambda rngs: WanVAE(self.system.vae, rngs=rngs),
            "text": lambda rngs: UMT5Encoder(self.system.text, rngs=rngs),
        }
        if config.text_cache:
            del self._models["text"]
        self._graphs = {name: parameters.graph_of(model) for name, model in self._models.items()}
        self._validator = Validator(self.system, self._graphs)

    def init(self, key: jax.Array) -> Params:
        """{"dit": ..., "vae": ..., "text": ...}, without the last where encoded sentences are cached."""
        keys = dict(zip(self._models, jax.random.split(key, len(self._models)), strict=True))
        return {name: parameters.initialised(model, keys[name]) for name, model in self._models.items()}

    def restore_pretrained(self, target: Params) -> Params:
        """The parts that the recipe names, whole; a DiT without direct video injection is widened for it."""
        given = {}
        for part, folder in self.config.pretrained:
            field = bundle.FIELDS[part]
            if field in target:
                given[field] = parameters.read(folder, part, getattr(self.system, field).precision, target[field])
        if "dit" in given and self.system.direct_video_injection:
            patches = given["dit"]["patch_embedding"]
            if patches["kernel"].shape[-2] == self.system.vae.z_dim:
                patches["kernel"] = widened_patch_kernel(patches["kernel"], self.system.vae.z_dim)
        return parameters.place_matching(given, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Velocity loss at boundary-biased times (FlowRVS engine.py).

        Shapes: batch {"frames": uint8 [B, T, H, W, 3], "masks": bool [B, T, H, W]}, or {"video_mean",
          "video_std", "mask_latents": [B, t, h, w, Z]} from a cache; with {"ids", "text_mask": [B, L]} or, encoded,
          {"text_states": uint16 [B, L, D]}; and {"valid": bool [B, h, w]} where clips are padded.
        """
        time_key, noise_key = jax.random.split(key)
        posterior, mask_latents = self._latents(params, batch)
        video = posterior.sample(noise_key) if self.config.sample_start else posterior.mean
        video = self._vae(params).normalise(video)
        if self.config.mask_latent_space == "normalised":
            mask_latents = self._vae(params).normalise(mask_latents)
        if "text_states" in batch:
            text = text_cache.from_bits(batch["text_states"])
        else:
            text = self.encode_text(params, batch["ids"], batch["text_mask"])
        times = flow.boundary_biased_timesteps(time_key, len(text), probability=self.config.boundary_probability)
        state, velocity = flow.training_pair(video, mask_latents, times)
        dit: WanTransformer = nnx.merge(self._graphs["dit"], params["dit"])
        predicted = dit(state_input(self.system, state, video), times, text, remat=self.config.remat)
        errors = losses.velocity_errors(predicted, velocity, batch.get("valid"))
        at_start = times == flow.TIME_STEPS
        start_loss = jnp.sum(errors * at_start) / jnp.maximum(jnp.sum(at_start), 1)
        return jnp.mean(errors), {"start_loss": start_loss, "target_power": jnp.mean(jnp.square(mask_latents))}

    def encode_text(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Text rows as the DiT sees them, zero behind each sentence. Shapes: [B, L] -> [B, L, D]."""
        encoder: UMT5Encoder = nnx.merge(self._graphs["text"], params["text"])
        return jnp.where(mask[..., None], encoder(ids, mask), 0)

    def _vae(self, params: Params) -> WanVAE:
        return nnx.merge(self._graphs["vae"], params["vae"])

    def _latents(self, params: Params, batch: Batch) -> tuple[Posterior, jax.Array]:
        """Posterior of the video and mean latent of the mask, the latter as the autoencoder gives it."""
        if "video_mean" in batch:
            mean, deviation = (batch[name].astype(jnp.float32) for name in ("video_mean", "video_std"))
            return Posterior(mean, 2 * jnp.log(deviation)), batch["mask_latents"].astype(jnp.float32)
        vae = self._vae(params)
        masks = jnp.repeat(batch["masks"][..., None].astype(jnp.float32), 3, axis=-1) * 2 - 1
        posterior = vae.encode(normalised_pixels(batch["frames"]))
        return jax.lax.stop_gradient((posterior, vae.encode(masks).mean))

    def source(self, split: str) -> Any:
        """Videos with sentences, clips of moving_shapes, or the cache of their latents."""
        if split == "train" and self.config.latent_cache:
            from rvseg_jax.systems.flowrvs.latent_cache import cached_clips

            return cached_clips(self.config, self.system)
        if split == "train" and self.config.data.sets:
            return self._videos
        return clips_of(self.config.clips, split)

    @cached_property
    def _videos(self) -> Any:
        return data.training_source(self.config.data)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """One sentence of a clip, tokenised or encoded."""
        from rvseg_jax.input_pipeline.transforms import Steps

        path = resolve(self.config.tokenizer)
        real = split == "train" and bool(self.config.data.sets)
        any_sentence = split == "train" and not real
        row = SentenceRow(path, self.config.text_length, any_sentence, longest=self.config.longest_sentence)
        if not real:
            return row
        if self.config.text_cache:
            row.encoded = text_cache.cached_text(
                self.config.text_cache,
                data.captions(self.config.data, self._videos),
                folder=dict(self.config.pretrained)["umt5"],
                tokenizer=path,
                text_length=self.config.text_length,
            )
        return row if self.config.latent_cache else Steps([data.training_samples(self.config.data, self._videos), row])

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity J on validation clips, by kind of sentence and in the mean."""
        del step
        clips, row = self.source("validation"), self.transform("validation")
        self._validator.load(params)
        rng = np.random.default_rng(0)
        samples = [clips[index] for index in range(self.config.validation_clips)]
        return region_similarity(samples, (self._validator.masks(row(sample, rng)) for sample in samples))

    def export(self, params: Params, folder: Path) -> None:
        """Writes the whole system, or the parts that are given; see `bundle`."""
        parts = {part: name for part, name in bundle.FIELDS.items() if name in params}
        modules = {part: parameters.assembled(self._models[name], params[name]) for part, name in parts.items()}
        whole = self.system if len(modules) == len(bundle.FIELDS) else None
        bundle.save(folder, modules, config=whole, tokenizer=resolve(self.config.tokenizer))
