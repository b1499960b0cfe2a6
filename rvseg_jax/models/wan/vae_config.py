"""Sizes of the Wan 2.1 video autoencoder, and what a pass through it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.layers.conv import ConvImplementation

LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

# Fields of an upstream config.json that change nothing in the network: they follow from others, or are for training.
_IGNORED_FIELDS = {
    *("_class_name", "_diffusers_version", "_name_or_path"),
    *("scale_factor_temporal", "scale_factor_spatial", "dropout"),
}
# Fields of the Wan 2.2 autoencoder, with the values that leave it a Wan 2.1 one.
_ABSENT_FIELDS: dict[str, tuple[Any, ...]] = {
    "attn_scales": ([], ()),
    "is_residual": (False,),
    "patch_size": (None, 1),
}

_WINDOW = 27  # taps of a 3x3x3 convolution


@dataclass(frozen=True)
class WanVAEConfig:
    """Sizes of a Wan autoencoder; the defaults are Wan 2.1's, under upstream's names.

    Attributes:
      base_dim: channels at full resolution.
      decoder_base_dim: the decoder's, `base_dim` where None.
      z_dim: channels of a latent.
      dim_mult: channels of each level in multiples of the base; space is halved between levels.
      num_res_blocks: residual blocks of an encoder level; a decoder level has one more.
      temporal_downsample: whether time is halved too after each level but the last (upstream spells it
        `temperal_downsample`).
      in_channels, out_channels: of the video and of the decoder's output, 1 for masks.
      latents_mean, latents_std: statistics of each latent channel, by which latents are normalised.
      conv_impl: how 3-D convolutions are computed, see `layers.conv`.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3
    latents_mean: tuple[float, ...] = LATENTS_MEAN
    latents_std: tuple[float, ...] = LATENTS_STD
    conv_impl: ConvImplementation = "auto"
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries: give one for each step "
                f"between the {len(self.dim_mult)} levels of dim_mult"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} has {len(getattr(self, name))} values: give z_dim = {self.z_dim}")
        if self.base_dim % 2 or (self.decoder_base_dim or 0) % 2:
            raise ValueError(f"base_dim {self.base_dim} must be even: each upsampling halves the channels")

    @property
    def temporal_stride(self) -> int:
        """Frames to a latent frame (after the first, which stands for itself)."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def spatial_stride(self) -> int:
        """Pixels to a latent cell along each side."""
        return 2 ** len(self.temporal_downsample)

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Channels after conv_in, then of each level."""
        return tuple(self.base_dim * factor for factor in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Channels after conv_in, then of each level, coarsest first; an upsampling leaves half of them."""
        base = self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim
        return tuple(base * factor for factor in (self.dim_mult[-1], *reversed(self.dim_mult)))

    @classmethod
    def wan2_1(cls, precision: Precision = PARITY) -> "WanVAEConfig":
        """Wan2.1's autoencoder of colour video: 126,892,531 parameters."""
        return cls(precision=precision)

    @classmethod
    def flowrvs(cls, precision: Precision = PARITY) -> "WanVAEConfig":
        """FlowRVS's: the same with a one-channel decoder head for masks, 126,887,345 parameters."""
        return cls(out_channels=1, precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "WanVAEConfig":
        """A network for tests; mean and deviation of the latents are such that leaving them out shows."""
        return cls(
            base_dim=8,
            z_dim=4,
            num_res_blocks=1,
            out_channels=1,
            latents_mean=(0.1,) * 4,
            latents_std=(1.5,) * 4,
            precision=precision,
        )

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "WanVAEConfig":
        """The config of an upstream `vae/config.json`.

        Raises:
          ValueError: for an unknown field, or one of the Wan 2.2 autoencoder.
        """
        given = {name: value for name, value in values.items() if name not in _IGNORED_FIELDS}
        for name, harmless in _ABSENT_FIELDS.items():
            if given.pop(name, harmless[0]) not in harmless:
                raise ValueError(f"{name!r} is {values[name]!r}: only the Wan 2.1 autoencoder is here")
        if "temperal_downsample" in given:
            given["temporal_downsample"] = given.pop("temperal_downsample")
        known = {entry.name for entry in fields(cls)} - {"precision", "conv_impl"}
        for name in sorted(set(given) - known):
            raise ValueError(f"unknown field {name!r} in a Wan autoencoder config: remove it")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**given, precision=precision)


def encode_flops(cfg: WanVAEConfig, frames: int, height: int, width: int) -> int:
    """Floating-point operations to encode one video, two for each multiply-add of a convolution or product.

    Args:
      frames, height, width: of the video, in pixels.
    """
    dims, t, cells = cfg.encoder_dims, frames, height * width
    total = _WINDOW * t * cells * cfg.in_channels * dims[0]
    for level, (inputs, outputs) in enumerate(pairwise(dims)):
        total += t * cells * _residual_cost(inputs, outputs)
        total += (cfg.num_res_blocks - 1) * t * cells * _residual_cost(outputs, outputs)
        if level < len(cfg.temporal_downsample):
            cells //= 4
            total += 9 * t * cells * outputs**2
            if cfg.temporal_downsample[level]:
                t = (t - 1) // 2 + 1
                total += 3 * (t - 1) * cells * outputs**2  # the first frame passes by
    moments = 2 * cfg.z_dim
    total += _middle_cost(t, cells, dims[-1]) + t * cells * moments * (_WINDOW * dims[-1] + moments)
    return 2 * total


def decode_flops(cfg: WanVAEConfig, frames: int, height: int, width: int) -> int:
    """Floating-point operations to decode one clip, counted as in `encode_flops`.

    Args:
      frames, height, width: of the latents.
    """
    dims, t, cells = cfg.decoder_dims, frames, height * width
    total = t * cells * cfg.z_dim * (cfg.z_dim + _WINDOW * dims[0]) + _middle_cost(t, cells, dims[0])
    upsamplings = (*reversed(cfg.temporal_downsample), None)
    for level, ((inputs, outputs), temporal) in enumerate(zip(pairwise(dims), upsamplings, strict=True)):
        total += t * cells * _residual_cost(inputs // 2 if level else inputs, outputs)
        total += cfg.num_res_blocks * t * cells * _residual_cost(outputs, outputs)
        if temporal is not None:
            if temporal:
                total += 6 * (t - 1) * cells * outputs**2
                t = 2 * t - 1
            cells *= 4
            total += 9 * t * cells * outputs * (outputs // 2)
    return 2 * (total + _WINDOW * t * cells * dims[-1] * cfg.out_channels)


def _residual_cost(inputs: int, outputs: int) -> int:
    """Multiply-adds of a residual block for one position."""
    return _WINDOW * outputs * (inputs + outputs) + (inputs * outputs if inputs != outputs else 0)


def _middle_cost(frames: int, cells: int, features: int) -> int:
    """Multiply-adds of the middle block."""
    block = 2 * _residual_cost(features, features) + 4 * features**2 + 2 * cells * features
    return frames * cells * block
