"""Residual networks of the two encoders (He et al. 2016), up to stride 16, as in upstream's `model/resnet.py`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.norm import BatchNorm

STEM = (7, 7)
_SAME = [(1, 1), (1, 1)]


def stem_conv(inputs: int, outputs: int, *, precision: Precision, rngs: nnx.Rngs) -> Conv:
    """The convolution that a network begins with: 7x7, stride 2."""
    padding = [(3, 3), (3, 3)]
    return Conv(inputs, outputs, STEM, strides=(2, 2), padding=padding, use_bias=False, precision=precision, rngs=rngs)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows with stride 2 and a border of one. Shapes: [B, H, W, C] -> [B, h, w, C]."""
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    border = ((0, 0), *_SAME, (0, 0))
    return jax.lax.reduce_window(x, least, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)


class Shortcut(nnx.Module):
    """What stands beside a block that changes the size: a 1x1 convolution and a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.conv = Conv(inputs, outputs, (1, 1), strides=(stride, stride), use_bias=False, **options)
        self.norm = BatchNorm(outputs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, h, w, C']."""
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut; the first strides."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.conv1 = Conv(inputs, planes, (3, 3), strides=(stride, stride), padding=_SAME, use_bias=False, **options)
        self.bn1 = BatchNorm(planes, **options)
        self.conv2 = Conv(planes, planes, (3, 3), padding=_SAME, use_bias=False, **options)
        self.bn2 = BatchNorm(planes, **options)
        changes = stride != 1 or inputs != planes
        self.downsample = Shortcut(inputs, planes, stride, **options) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, h, w, planes]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nnx.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut; the middle one strides."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        outputs = planes * self.expansion
        self.conv1 = Conv(inputs, planes, (1, 1), use_bias=False, **options)
        self.bn1 = BatchNorm(planes, **options)
        self.conv2 = Conv(planes, planes, (3, 3), strides=(stride, stride), padding=_SAME, use_bias=False, **options)
        self.bn2 = BatchNorm(planes, **options)
        self.conv3 = Conv(planes, outputs, (1, 1), use_bias=False, **options)
        self.bn3 = BatchNorm(outputs, **options)
        changes = stride != 1 or inputs != outputs
        self.downsample = Shortcut(inputs, outputs, stride, **options) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, h, w, 4 planes]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    planes: int,
    depth: int,
    stride: int,
    *,
    precision: Precision,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Blocks at one resolution, of which the first strides and widens."""
    first = block(inputs, planes, stride, precision=precision, rngs=rngs)
    later = [block(planes * block.expansion, planes, 1, precision=precision, rngs=rngs) for _ in range(depth - 1)]
    return nnx.List([first, *later])


def run_stage(blocks: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
    """Runs the blocks of a stage one after the other. Shapes: [B, H, W, C] -> [B, h, w, C']."""
    for block in blocks:
        x = block(x)
    return x
