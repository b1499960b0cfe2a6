"""The three stages in which FlowRVS is trained from nothing; the protocol is `training.tasks.Task`.

    flowrvs.vae           the autoencoder, on clips and on masks as grey clips
    flowrvs.mask_decoder  its decoder with one output channel, encoder frozen
    flowrvs.dit           the transformer (and a small text encoder), autoencoder frozen

The published model takes the first from Wan and trains the other two.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.precision import Precision
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
from rvseg_jax.systems.flowrvs import bundle, flow, losses
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import normalised_pixels, state_input
from rvseg_jax.systems.flowrvs.injection import widened_patch_kernel
from rvseg_jax.systems.flowrvs.rows import CropRow, SentenceRow, clips_of
from rvseg_jax.systems.flowrvs.validation import Validator, region_similarity
from rvseg_jax.zoo import resolve

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def _init(model: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(model(nnx.Rngs(params=key))))


def _weights(folder: str, part: str, precision: Precision) -> Params:
    return nnx.to_pure_dict(nnx.state(bundle.load_part(resolve(folder), part, precision)))


def _graph(model: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: model(nnx.Rngs(params=0))))


@dataclass(frozen=True)
class VAEConfig:
    """Autoencoder stage.

    Attributes:
      vae: sizes of the autoencoder.
      clips: training clips.
      crop, crop_frames: side in pixels and frames of the crops that it trains on; 0 is everything.
      mask_share: share of mask clips, so that one encoder serves videos and masks.
      divergence_weight: weight of the Kullback-Leibler term.
    """

    vae: WanVAEConfig = WanVAEConfig()
    clips: MovingShapesConfig = MovingShapesConfig()
    crop: int = 48
    crop_frames: int = 5
    mask_share: float = 0.5
    divergence_weight: float = 1e-4


class VAETask:
    """Autoencoding with an absolute error and a weak divergence from the normal distribution."""

    Config = VAEConfig
    sharding_table: Table = prefixed(VAE_SHARDING, "vae")

    def __init__(self, config: VAEConfig, *, precision: Precision) -> None:
        self.config = config
        self._model = lambda rngs: WanVAE(replace(config.vae, precision=precision), rngs=rngs)
        self._graph = _graph(self._model)

    def init(self, key: jax.Array) -> Params:
        """{"vae": ...}."""
        return {"vae": _init(self._model, key)}

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Shapes: batch {"video": uint8 [B, T, H, W, 3]}."""
        vae: WanVAE = nnx.merge(self._graph, params["vae"])
        video = normalised_pixels(batch["video"])
        posterior = vae.encode(video)
        decoded = vae.decode(posterior.sample(key), clamp=False).astype(jnp.float32)
        error = jnp.mean(jnp.abs(decoded - video))
        divergence = jnp.mean(posterior.kl()) / posterior.mean[0].size  # per latent channel
        metrics = {"error": error, "divergence": divergence, "latent_std": jnp.std(posterior.mean)}
        return error + self.config.divergence_weight * divergence, metrics

    def source(self, split: str) -> Any:
        """Clips of moving_shapes."""
        return clips_of(self.config.clips, split)

    def transform(self, split: str) -> CropRow:
        """Random crops, half of them of masks."""
        del split
        return CropRow(self.config.crop, self.config.crop_frames, self.config.mask_share)

    def export(self, params: Params, folder: Path) -> None:
        """Writes the autoencoder for the next stage; see `bundle`."""
        bundle.save(folder, {"wan_vae": nnx.merge(self._graph, params["vae"])})


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Mask decoder stage (the one whose script upstream never released).

    Attributes:
      vae: sizes of the autoencoder, `out_channels` 1.
      clips, crop, crop_frames: as for the autoencoder.
      pretrained: folder of the autoencoder's export, or of a mask decoder's to train it further.
      focal_weight, dice_weight: upstream's removed options suggest 8 and 4.
      latent_noise: standard deviation of noise added to the latents, for the errors that a DiT makes.
    """

    vae: WanVAEConfig = WanVAEConfig(out_channels=1)
    clips: MovingShapesConfig = MovingShapesConfig()
    crop: int = 48
    crop_frames: int = 5
    pretrained: str = ""
    focal_weight: float = 8.0
    dice_weight: float = 4.0
    latent_noise: float = 0.0


class MaskDecoderTask:
    """Mask auto-encoding: frozen encoder, sampled latents, focal and dice loss on logits before the clamp.

    Upstream's wrapper clamps the logits to -1..1, where the gradient vanishes; inference clamps, training
    does not.
    """

    Config = MaskDecoderConfig
    sharding_table: Table = prefixed(VAE_SHARDING, "vae")

    def __init__(self, config: MaskDecoderConfig, *, precision: Precision) -> None:
        self.config = config
        self._model = lambda rngs: WanVAE(replace(config.vae, precision=precision), rngs=rngs)
        self._graph = _graph(self._model)
        self._precision = precision

    def init(self, key: jax.Array) -> Params:
        """{"vae": ...}."""
        return {"vae": _init(self._model, key)}

    def restore_pretrained(self, target: Params) -> Params:
        """The autoencoder's parameters; its output convolution is new unless it too has the channels of masks."""
        given = _weights(self.config.pretrained, "wan_vae", self._precision)
        channels = given["decoder"]["conv_out"]["bias"].shape[-1]
        new = "(?!)" if channels == self.config.vae.out_channels else r"^vae/decoder/conv_out/"
        return place_matching({"vae": given}, target, but=new)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Shapes: batch {"video": uint8 0 or 255 [B, T, H, W, 3]}, grey mask clips."""
        vae: WanVAE = nnx.merge(self._graph, params["vae"])
        posterior_key, noise_key = jax.random.split(key)
        masks = (batch["video"][..., :1] > 127).astype(jnp.float32)
        latents = vae.encode(normalised_pixels(batch["video"])).sample(posterior_key)
        latents = jax.lax.stop_gradient(latents)
        latents += self.config.latent_noise * jax.random.normal(noise_key, latents.shape, latents.dtype)
        logits = vae.decode(latents, clamp=False).astype(jnp.float32)
        focal, dice = losses.focal_loss(logits, masks), losses.dice_loss(logits, masks)
        found = logits > 0
        overlap = jnp.sum(found & (masks > 0)) / jnp.maximum(jnp.sum(found | (masks > 0)), 1)
        loss = self.config.focal_weight * focal + self.config.dice_weight * dice
        return loss, {"focal": focal, "dice": dice, "iou": overlap}

    def source(self, split: str) -> Any:
        """Clips of moving_shapes."""
        return clips_of(self.config.clips, split)

    def transform(self, split: str) -> CropRow:
        """Random crops of masks."""
        del split
        return CropRow(self.config.crop, self.config.crop_frames, mask_share=1.0)

    def export(self, params: Params, folder: Path) -> None:
        """Writes the autoencoder for the next stage; see `bundle`."""
        bundle.save(folder, {"wan_vae": nnx.merge(self._graph, params["vae"])})


@dataclass(frozen=True)
class DiTConfig:
    """Transformer stage.

    Attributes:
      dit, vae, text: sizes of the parts; `dit.in_channels` twice the latent's means direct video injection.
      text_length: tokens to which a sentence is padded.
      tokenizer: tokenizer.json, or a folder with one; "zoo/..." is bundled.
      clips: training clips.
      pretrained: pairs (part, folder of an export) for "wan_vae", "wan_dit" or "umt5".
      boundary_probability: share of training times at the start of the path (BBS).
      sample_start: whether the video latent is a sample of the posterior rather than its mean (SPA).
      mask_latent_space: see `FlowRVSConfig`.
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
    pretrained: tuple[tuple[str, str], ...] = ()
    boundary_probability: float = 0.5
    sample_start: bool = True
    mask_latent_space: Literal["raw", "normalised"] = "raw"
    remat: stack.Remat = "full"
    latent_cache: str = ""
    cached_clips: int = 0
    validation_clips: int = 64


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
        self.system = FlowRVSConfig(
            dit=config.dit,
            vae=config.vae,
            text=config.text,
            text_length=config.text_length,
            box=config.clips.size,
            mask_latent_space=config.mask_latent_space,
        ).with_precision(precision)
        self._models: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
            "dit": lambda rngs: WanTransformer(self.system.dit, rngs=rngs),
            "vae": lambda rngs: WanVAE(self.system.vae, rngs=rngs),
            "text": lambda rngs: UMT5Encoder(self.system.text, rngs=rngs),
        }
        self._graphs = {name: _graph(model) for name, model in self._models.items()}
        self._validator = Validator(self.system, self._graphs)

    def init(self, key: jax.Array) -> Params:
        """{"dit": ..., "text": ..., "vae": ...}."""
        keys = dict(zip(self._models, jax.random.split(key, len(self._models)), strict=True))
        return {name: _init(model, keys[name]) for name, model in self._models.items()}

    def restore_pretrained(self, target: Params) -> Params:
        """The parts that the recipe names, whole; a DiT without direct video injection is widened for it."""
        precision = self.system.dit.precision
        given = {bundle.FIELDS[part]: _weights(folder, part, precision) for part, folder in self.config.pretrained}
        if "dit" in given and self.system.direct_video_injection:
            patches = given["dit"]["patch_embedding"]
            if patches["kernel"].shape[-2] == self.system.vae.z_dim:
                patches["kernel"] = widened_patch_kernel(patches["kernel"], self.system.vae.z_dim)
        return place_matching(given, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Velocity loss at boundary-biased times (FlowRVS engine.py).

        Shapes: batch {"frames": uint8 [B, T, H, W, 3], "masks": bool [B, T, H, W]}, or {"video_mean",
          "video_std", "mask_latents": [B, t, h, w, Z]} from a cache; with {"ids": [B, L], "text_mask": [B, L]}.
        """
        time_key, noise_key = jax.random.split(key)
        posterior, mask_latents = self._latents(params, batch)
        video = posterior.sample(noise_key) if self.config.sample_start else posterior.mean
        video = self._vae(params).normalise(video)
        if self.config.mask_latent_space == "normalised":
            mask_latents = self._vae(params).normalise(mask_latents)
        text = self.encode_text(params, batch["ids"], batch["text_mask"])
        times = flow.boundary_biased_timesteps(
            time_key, len(batch["ids"]), probability=self.config.boundary_probability
        )
        state, velocity = flow.training_pair(video, mask_latents, times)
        dit: WanTransformer = nnx.merge(self._graphs["dit"], params["dit"])
        predicted = dit(state_input(self.system, state, video), times, text, remat=self.config.remat)
        loss = losses.velocity_loss(predicted, velocity)
        at_start = times == flow.TIME_STEPS
        error = jnp.mean(jnp.square(predicted - velocity), axis=(1, 2, 3, 4))
        start_loss = jnp.sum(error * at_start) / jnp.maximum(jnp.sum(at_start), 1)
        return loss, {"start_loss": start_loss, "target_power": jnp.mean(jnp.square(mask_latents))}

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
        """Clips of moving_shapes, or the cache of their latents."""
        if split == "train" and self.config.latent_cache:
            from rvseg_jax.systems.flowrvs.latent_cache import cached_clips

            return cached_clips(self.config, self.system)
        return clips_of(self.config.clips, split)

    def transform(self, split: str) -> SentenceRow:
        """One sentence of a clip, tokenised."""
        path = resolve(self.config.tokenizer)
        return SentenceRow(path, self.config.text_length, any_sentence=split == "train")

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Region similarity J on validation clips, by kind of sentence and in the mean."""
        del step
        clips, row = self.source("validation"), self.transform("validation")
        self._validator.load(params)
        rng = np.random.default_rng(0)
        samples = [clips[index] for index in range(self.config.validation_clips)]
        return region_similarity(samples, (self._validator.masks(row(sample, rng)) for sample in samples))

    def export(self, params: Params, folder: Path) -> None:
        """Writes the whole system; see `bundle`."""
        modules = {part: nnx.merge(self._graphs[name], params[name]) for part, name in bundle.FIELDS.items()}
        bundle.save(folder, modules, config=self.system, tokenizer=resolve(self.config.tokenizer))


def place_matching(given: Params, target: Params, *, but: str = "(?!)", path: str = "") -> Params:
    """`given` leaf by leaf in the dtype and on the sharding of `target`; keys keep their types.

    Args:
      given, target: nested dicts; `target` holds `jax.ShapeDtypeStruct`, for the leaves that are wanted.
      but: path regex of leaves that are left out.
      path: where these dicts lie in the whole tree, with a final "/".

    Raises:
      ValueError: if a leaf of `given` has another shape than its counterpart.
    """
    placed: Params = {}
    for key, value in given.items():
        where, wanted = f"{path}{key}", target.get(key)
        if wanted is None or re.search(but, where):
            continue
        if isinstance(value, Mapping):
            if branch := place_matching(value, wanted, but=but, path=f"{where}/"):  # type: ignore[arg-type]
                placed[key] = branch
            continue
        if wanted.shape != value.shape:
            raise ValueError(
                f"pretrained {where} has shape {value.shape}, the recipe's model {wanted.shape}: use its config"
            )
        placed[key] = jax.device_put(jnp.asarray(value, wanted.dtype), wanted.sharding)
    return placed
