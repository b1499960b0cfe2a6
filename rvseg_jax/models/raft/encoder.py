"""The encoders of images, `FeatureEncoder` in torchvision's `models/optical_flow/raft.py`."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.norm import BatchNorm, InstanceNorm

# The feature encoder normalises each image by itself, the context encoder by stored statistics.
Norm = Literal["instance", "batch"]


def same_conv(
    inputs: int, outputs: int, kernel_size: tuple[int, int], *, stride: int = 1, precision: Precision, rngs: nnx.Rngs
) -> Conv:
    """A convolution with half its window as a border of zeros."""
    padding = [(side // 2, side // 2) for side in kernel_size]
    return Conv(inputs, outputs, kernel_size, strides=(stride, stride), padding=padding, precision=precision, rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution and a norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        *,
        stride: int = 1,
        norm: Norm,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.conv = same_conv(inputs, outputs, (side, side), stride=stride, precision=precision, rngs=rngs)
        self.norm: BatchNorm | InstanceNorm
        if norm == "batch":
            self.norm = BatchNorm(outputs, precision=precision, rngs=rngs)
        else:
            self.norm = InstanceNorm(precision=precision)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, in] -> [B, h, w, out]."""
        return self.norm(self.conv(x))


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, each with norm and rectifier, beside a shortcut; the first strides."""

    def __init__(self, inputs: int, outputs: int, stride: int, **options: Any):
        self.convnormrelu1 = ConvNorm(inputs, outputs, 3, stride=stride, **options)
        self.convnormrelu2 = ConvNorm(outputs, outputs, 3, **options)
        self.downsample = None if stride == 1 else ConvNorm(inputs, outputs, 1, stride=stride, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, in] -> [B, h, w, out]."""
        y = jax.nn.relu(self.convnormrelu1(x))
        y = jax.nn.relu(self.convnormrelu2(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class FeatureEncoder(nnx.Module):
    """Images to feature maps at stride 8; the statistics of "batch" norms are never updated (see `BatchNorm`).

    torchvision trains the latter on its first data set only and freezes them for all others.
    """

    def __init__(self, layers: Sequence[int], *, norm: Norm, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"norm": norm, "precision": precision, "rngs": rngs}
        first, *stages, outputs = layers

        def stage(index: int, stride: int) -> nnx.List:
            inputs = stages[index - 1] if index else first
            blocks = [ResidualBlock(inputs, stages[index], stride, **options)]
            return nnx.List([*blocks, ResidualBlock(stages[index], stages[index], 1, **options)])

        self.convnormrelu = ConvNorm(3, first, 7, stride=2, **options)
        self.layer1 = stage(0, 1)
        self.layer2 = stage(1, 2)
        self.layer3 = stage(2, 2)
        self.conv = same_conv(stages[-1], outputs, (1, 1), precision=precision, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Shapes: images [B, H, W, 3] -> [B, H / 8, W / 8, C]."""
        x = jax.nn.relu(self.convnormrelu(images))
        for blocks in (self.layer1, self.layer2, self.layer3):
            for block in blocks:
                x = block(x)
        return self.conv(x)
