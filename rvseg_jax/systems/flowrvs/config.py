"""What a FlowRVS checkpoint needs to be run as it was trained."""

from dataclasses import dataclass, replace
from typing import Literal

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.systems.flowrvs.flow import ScheduleKind


@dataclass(frozen=True)
class FlowRVSConfig:
    """Parts and inference settings of FlowRVS (arXiv 2510.06139); the defaults are the current upstream.

    Attributes:
      text_length: tokens to which a sentence is padded. The padding rows are attended to, so the number
        matters: 256 in upstream since February 2026, 64 before, 512 in Wan itself.
      box: (height, width) in pixels that frames are shrunk or grown to fit.
      size_multiple: both sides of a frame are floored to a multiple of it.
      num_steps: Euler steps; the released weights are made for one.
      schedule: times of more than one step, see `flow.schedule`.
      mask_latent_space: "raw" if the DiT predicts the autoencoder's latents as they are, "normalised" if it
        predicts them scaled with the latent statistics (upstream's code and weights before February 2026).
        The wrong one gives saturated masks without an error.
      threshold: probability above which a pixel belongs to the mask.
    """

    dit: WanTransformerConfig = WanTransformerConfig()
    vae: WanVAEConfig = WanVAEConfig(out_channels=1)
    text: UMT5Config = UMT5Config()
    text_length: int = 256
    box: tuple[int, int] = (480, 832)
    size_multiple: int = 16
    num_steps: int = 1
    schedule: ScheduleKind = "mevis"
    mask_latent_space: Literal["raw", "normalised"] = "raw"
    threshold: float = 0.5

    def __post_init__(self):
        latents = self.vae.z_dim
        if self.dit.out_channels != latents or self.dit.in_channels not in (latents, 2 * latents):
            raise ValueError(
                f"the DiT has {self.dit.in_channels} input and {self.dit.out_channels} output channels, but the "
                f"autoencoder's {latents} latent channels need {latents} (or {2 * latents} with direct video "
                f"injection) and {latents}: these parts do not belong together"
            )
        if self.dit.text_dim != self.text.d_model:
            raise ValueError(
                f"the DiT reads text of width {self.dit.text_dim}, but the text encoder gives {self.text.d_model}"
            )

    @property
    def direct_video_injection(self) -> bool:
        """Whether the video latent is concatenated to the state (DVI); the weights decide, not a flag."""
        return self.dit.in_channels == 2 * self.vae.z_dim

    @classmethod
    def released(cls, precision: Precision = PARITY) -> "FlowRVSConfig":
        """The published model: Wan2.1-T2V-1.3B, one-channel decoder, UMT5-XXL."""
        return cls(
            dit=WanTransformerConfig.t2v_1_3b(precision),
            vae=WanVAEConfig.flowrvs(precision),
            text=UMT5Config.xxl(precision),
        )

    def with_precision(self, precision: Precision) -> "FlowRVSConfig":
        """The same model in other number formats."""
        parts = {name: replace(getattr(self, name), precision=precision) for name in ("dit", "vae", "text")}
        return replace(self, **parts)
