"""The stages in which an autoencoder for FlowRVS is trained; the protocol is `training.tasks.Task`.

    flowrvs.vae           the autoencoder from nothing, on clips and on masks as grey clips
    flowrvs.mask_decoder  its decoder with one output channel, encoder frozen

The published model takes the first from Wan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapesConfig
from rvseg_jax.models.wan.vae import SHARDING as VAE_SHARDING
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.parallel.rules import Table, prefixed
from rvseg_jax.parts import parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.systems.flowrvs import bundle, losses
from rvseg_jax.systems.flowrvs.data import DatasetsConfig, training_samples, training_source
from rvseg_jax.systems.flowrvs.inference import normalised_pixels
from rvseg_jax.systems.flowrvs.rows import CropRow, clips_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


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
        self._graph = parameters.graph_of(self._model)

    def init(self, key: jax.Array) -> Params:
        """{"vae": ...}."""
        return {"vae": parameters.initialised(self._model, key)}

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
        bundle.save(folder, {"wan_vae": parameters.assembled(self._model, params["vae"])})


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Mask decoder stage (the one whose script upstream never released).

    Attributes:
      vae: sizes of the autoencoder, `out_channels` 1.
      clips, crop, crop_frames: as for the autoencoder.
      data: real videos whose masks it trains on instead of `clips`.
      pretrained: folder of the autoencoder's export, or of a mask decoder's to train it further.
      focal_weight, dice_weight: upstream's removed options suggest 8 and 4.
      latent_noise: standard deviation of noise added to the latents, for the errors that a DiT makes.
    """

    vae: WanVAEConfig = WanVAEConfig(out_channels=1)
    clips: MovingShapesConfig = MovingShapesConfig()
    data: DatasetsConfig = DatasetsConfig()
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
        self._graph = parameters.graph_of(self._model)
        self._precision = precision

    def init(self, key: jax.Array) -> Params:
        """{"vae": ...}."""
        return {"vae": parameters.initialised(self._model, key)}

    def restore_pretrained(self, target: Params) -> Params:
        """The autoencoder's parameters; its output convolution is new unless it too has the channels of masks."""
        given = parameters.read(self.config.pretrained, "wan_vae", self._precision, target["vae"])
        channels = given["decoder"]["conv_out"]["bias"].shape[-1]
        new = "(?!)" if channels == self.config.vae.out_channels else r"^vae/decoder/conv_out/"
        return parameters.place_matching({"vae": given}, target, but=new)

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
        """Videos with sentences, or clips of moving_shapes."""
        if split == "train" and self.config.data.sets:
            return training_source(self.config.data)
        return clips_of(self.config.clips, split)

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """Random crops of masks."""
        from rvseg_jax.input_pipeline.transforms import Steps

        row = CropRow(self.config.crop, self.config.crop_frames, mask_share=1.0)
        if split == "train" and self.config.data.sets:
            return Steps([training_samples(self.config.data, training_source(self.config.data)), row])
        return row

    def export(self, params: Params, folder: Path) -> None:
        """Writes the autoencoder for the next stage; see `bundle`."""
        bundle.save(folder, {"wan_vae": parameters.assembled(self._model, params["vae"])})
