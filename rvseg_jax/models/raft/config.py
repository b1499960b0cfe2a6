"""Sizes of RAFT."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.ops.correlation import Lookup

# Pixels of the image for one of the feature maps, along each side.
STRIDE = 8


@dataclass(frozen=True)
class RaftConfig:
    """Sizes of RAFT, under the names of torchvision's `_raft`; the defaults are `raft_large`, 5,257,536 parameters.

    Attributes:
      feature_encoder_layers, context_encoder_layers: channels of the first convolution, of three stages of two
        residual blocks, at strides 2, 2, 4 and 8, and of what is given out. The first two are equal.
      corr_block_num_levels: scales of the correlation.
      corr_block_radius: pixels of each scale that are read to either side.
      motion_encoder_corr_layers: channels of one or two convolutions on what is read.
      motion_encoder_flow_layers: channels of two convolutions on the flow.
      motion_encoder_out_channels: of what both become, with the flow itself as the last two.
      recurrent_block_hidden_state_size: the first channels of the context encoder begin the hidden state, the rest
        are the context.
      recurrent_block_kernel_size: windows of one or two gated recurrent units, odd.
      flow_head_hidden_size: channels inside the head that changes the flow.
      mask_predictor_hidden_size: channels inside the head that weighs neighbours for the full size.
      mask_predictor_multiplier: factor of its logits.
      num_flow_updates: how often the flow is updated, if a call does not say.
      corr_lookup: whether all pairs are correlated once, or those that are read at each update; "auto" by the memory
        that all pairs take.
      corr_max_bytes: the most that "auto" spends on all pairs of one pair of images.
    """

    feature_encoder_layers: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    context_encoder_layers: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    corr_block_num_levels: int = 4
    corr_block_radius: int = 4
    motion_encoder_corr_layers: tuple[int, ...] = (256, 192)
    motion_encoder_flow_layers: tuple[int, int] = (128, 64)
    motion_encoder_out_channels: int = 128
    recurrent_block_hidden_state_size: int = 128
    recurrent_block_kernel_size: tuple[tuple[int, int], ...] = ((1, 5), (5, 1))
    flow_head_hidden_size: int = 256
    mask_predictor_hidden_size: int = 256
    mask_predictor_multiplier: float = 0.25
    num_flow_updates: int = 12
    corr_lookup: Lookup = "auto"
    corr_max_bytes: int = 2**30
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        for name in ("feature_encoder_layers", "context_encoder_layers"):
            layers = getattr(self, name)
            if len(layers) != 5 or layers[0] != layers[1]:
                raise ValueError(f"{name} {layers}: give five, the first two equal")
        if len(self.motion_encoder_corr_layers) not in (1, 2) or len(self.motion_encoder_flow_layers) != 2:
            raise ValueError(
                f"motion_encoder_corr_layers {self.motion_encoder_corr_layers} and motion_encoder_flow_layers "
                f"{self.motion_encoder_flow_layers}: give one or two, and two"
            )
        kernels = self.recurrent_block_kernel_size
        if len(kernels) not in (1, 2) or any(side % 2 == 0 for kernel in kernels for side in kernel):
            raise ValueError(f"recurrent_block_kernel_size {kernels}: give one or two windows with odd sides")
        if self.context_channels < 1 or self.motion_encoder_out_channels < 3:
            raise ValueError(
                f"context_encoder_layers {self.context_encoder_layers} must give out more than the hidden state of "
                f"{self.recurrent_block_hidden_state_size}, and motion_encoder_out_channels "
                f"{self.motion_encoder_out_channels} be at least 3"
            )
        if self.corr_block_num_levels < 1 or self.corr_block_radius < 0 or self.num_flow_updates < 1:
            raise ValueError(
                f"corr_block_num_levels {self.corr_block_num_levels}, corr_block_radius {self.corr_block_radius}, "
                f"num_flow_updates {self.num_flow_updates}: give at least 1, 0 and 1"
            )

    @classmethod
    def large(cls, precision: Precision = PARITY) -> "RaftConfig":
        """torchvision's `raft_large`."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "RaftConfig":
        """A model for tests and small machines: 0.2 M parameters, images from 32 pixels on."""
        return cls(
            feature_encoder_layers=(16, 16, 24, 32, 32),
            context_encoder_layers=(16, 16, 24, 32, 48),
            corr_block_num_levels=2,
            corr_block_radius=2,
            motion_encoder_corr_layers=(32, 24),
            motion_encoder_flow_layers=(16, 8),
            motion_encoder_out_channels=32,
            recurrent_block_hidden_state_size=16,
            flow_head_hidden_size=32,
            mask_predictor_hidden_size=32,
            num_flow_updates=3,
            precision=precision,
        )

    @property
    def context_channels(self) -> int:
        """Channels of the context encoder that are context."""
        return self.context_encoder_layers[-1] - self.recurrent_block_hidden_state_size

    @property
    def corr_channels(self) -> int:
        """Correlations that are read for a pixel."""
        return self.corr_block_num_levels * (2 * self.corr_block_radius + 1) ** 2

    @property
    def min_size(self) -> int:
        """Pixels of the shortest side of an image that leaves two pixels at the last scale."""
        return STRIDE * 2**self.corr_block_num_levels

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], precision: Precision = PARITY) -> "RaftConfig":
        """The config of a checkpoint, from the shapes of its tensors under torchvision's keys.

        They tell levels and radius only together: of all pairs that fit, the one with the largest radius is taken.

        Raises:
          ValueError: if a tensor that tells a size is missing.
        """

        def width(key: str, axis: int = 0) -> int:
            key = f"{key}.weight"
            if key not in shapes or len(shapes[key]) <= axis:
                raise ValueError(f"no RAFT checkpoint: it has no tensor {key} with {axis + 1} axes")
            return int(shapes[key][axis])

        def encoder(name: str) -> tuple[int, int, int, int, int]:
            stages = (width(f"{name}.layer{index}.0.convnormrelu1.0") for index in (1, 2, 3))
            first, second, third = stages
            return width(f"{name}.convnormrelu.0"), first, second, third, width(f"{name}.conv")

        motion, unit = "update_block.motion_encoder", "update_block.recurrent_block.convgru{}.convz"
        units = [name for name in (unit.format(1), unit.format(2)) if f"{name}.weight" in shapes] or [unit.format(1)]
        seen = width(f"{motion}.convcorr1.0", 1)
        side = max(side for side in range(1, math.isqrt(seen) + 1, 2) if seen % side**2 == 0)
        corr = [name for name in ("convcorr1.0", "convcorr2.0") if f"{motion}.{name}.weight" in shapes]
        return cls(
            feature_encoder_layers=encoder("feature_encoder"),
            context_encoder_layers=encoder("context_encoder"),
            corr_block_num_levels=seen // side**2,
            corr_block_radius=side // 2,
            motion_encoder_corr_layers=tuple(width(f"{motion}.{name}") for name in corr),
            motion_encoder_flow_layers=(width(f"{motion}.convflow1.0"), width(f"{motion}.convflow2.0")),
            motion_encoder_out_channels=width(f"{motion}.conv.0") + 2,
            recurrent_block_hidden_state_size=width(unit.format(1)),
            recurrent_block_kernel_size=tuple((width(name, 2), width(name, 3)) for name in units),
            flow_head_hidden_size=width("update_block.flow_head.conv1"),
            mask_predictor_hidden_size=width("mask_predictor.convrelu.0"),
            precision=precision,
        )
