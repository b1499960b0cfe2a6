"""Blocks that features of objects pass through, as in upstream's `model/{modules,group_modules,cbam}.py`.

x are features of the image, [B, H, W, C]; g are features of its objects, [B, O, H, W, C]. A convolution of both side
by side is computed as two, of which that of the image is done once for all objects.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.ops.resize import resize

_GATE_WINDOW = 7


def per_object(layer: Any, g: jax.Array) -> jax.Array:
    """Applies an image layer to every object. Shapes: g [B, O, H, W, C] -> [B, O, H', W', C']."""
    y = layer(g.reshape(-1, *g.shape[2:]))
    return y.reshape(*g.shape[:2], *y.shape[1:])


def conv3x3(inputs: int, outputs: int, *, use_bias: bool = True, precision: Precision, rngs: nnx.Rngs) -> Conv:
    """A 3x3 convolution that keeps the size."""
    padding = [(1, 1), (1, 1)]
    return Conv(inputs, outputs, (3, 3), padding=padding, use_bias=use_bias, precision=precision, rngs=rngs)


class ChannelGate(nnx.Module):
    """Scales channels by what their mean and their maximum over the image say."""

    def __init__(self, features: int, reduction: int, *, precision: Precision, rngs: nnx.Rngs):
        self.fc1 = Linear(features, features // reduction, precision=precision, rngs=rngs)
        self.fc2 = Linear(features // reduction, features, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H, W, C]."""
        pooled = (x.mean((1, 2)), x.max((1, 2)))
        mean, most = (self.fc2(jax.nn.relu(self.fc1(y))) for y in pooled)
        return x * jax.nn.sigmoid(mean + most)[:, None, None]


class SpatialGate(nnx.Module):
    """Scales positions by what the maximum and the mean over their channels say."""

    def __init__(self, *, precision: Precision, rngs: nnx.Rngs):
        border = (_GATE_WINDOW // 2, _GATE_WINDOW // 2)
        window = (_GATE_WINDOW, _GATE_WINDOW)
        self.conv = Conv(2, 1, window, padding=[border, border], precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H, W, C]."""
        pooled = jnp.stack([x.max(-1), x.mean(-1)], axis=-1)
        return x * jax.nn.sigmoid(self.conv(pooled))


class CBAM(nnx.Module):
    """Convolutional block attention (Woo et al. 2018): the channel gate, then the spatial one."""

    def __init__(self, features: int, reduction: int, *, precision: Precision, rngs: nnx.Rngs):
        self.channel = ChannelGate(features, reduction, precision=precision, rngs=rngs)
        self.spatial = SpatialGate(precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C] -> [B, H, W, C]."""
        return self.spatial(self.channel(x))


class GroupResBlock(nnx.Module):
    """Two 3x3 convolutions, each after a ReLU, beside a shortcut that is a third where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.downsample = conv3x3(inputs, outputs, **options) if inputs != outputs else None
        self.conv1 = conv3x3(inputs, outputs, **options)
        self.conv2 = conv3x3(outputs, outputs, **options)

    def __call__(self, g: jax.Array) -> jax.Array:
        """Shapes: g [B, H, W, C] -> [B, H, W, C']."""
        y = self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(g))))
        return y + (g if self.downsample is None else self.downsample(g))


class JoinBlock(nnx.Module):
    """A `GroupResBlock` on the channels of the image followed by those of an object."""

    def __init__(self, image: int, group: int, outputs: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        changes = image + group != outputs
        self.image_downsample = conv3x3(image, outputs, use_bias=False, **options) if changes else None
        self.downsample = conv3x3(group, outputs, **options) if changes else None
        self.image_conv1 = conv3x3(image, outputs, use_bias=False, **options)
        self.conv1 = conv3x3(group, outputs, **options)
        self.conv2 = conv3x3(outputs, outputs, **options)

    def __call__(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C], g [B, O, H, W, C'] -> [B, O, H, W, C'']."""
        y = self.image_conv1(jax.nn.relu(x))[:, None] + per_object(self.conv1, jax.nn.relu(g))
        y = per_object(self.conv2, jax.nn.relu(y))
        if self.downsample is None or self.image_downsample is None:
            image = jnp.broadcast_to(x[:, None], (*g.shape[:2], *x.shape[1:]))
            return y + jnp.concatenate([image, g], axis=-1)
        return y + self.image_downsample(x)[:, None] + per_object(self.downsample, g)


class FeatureFusion(nnx.Module):
    """Joins features of the image to those of its objects."""

    def __init__(self, cfg: XMemConfig, image: int, group: int, outputs: int, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.block1 = JoinBlock(image, group, outputs, **options)
        self.attention = CBAM(outputs, cfg.reduction, **options)
        self.block2 = GroupResBlock(outputs, outputs, **options)

    def __call__(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, C], g [B, O, H, W, C'] -> [B, O, H, W, C'']."""
        g = self.block1(x, g)
        return per_object(self.block2, g + per_object(self.attention, g))


def gated_update(values: jax.Array, hidden: jax.Array) -> jax.Array:
    """The sensory memory after an update: upstream's own variant of a GRU, whose new value no gate has passed.

    Shapes: values [..., 3 C] (forget gate, update gate, new value, before their activations), hidden [..., C] ->
    [..., C].
    """
    values = values.astype(jnp.float32)
    forget, update, new = jnp.split(values, 3, axis=-1)
    forget, update = jax.nn.sigmoid(forget), jax.nn.sigmoid(update)
    return (forget * hidden * (1 - update) + update * jnp.tanh(new)).astype(hidden.dtype)


class HiddenReinforcer(nnx.Module):
    """The deep update: from the values that were just encoded."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        widths = (cfg.value_dim + cfg.hidden_dim, 3 * cfg.hidden_dim)
        self.transform = conv3x3(*widths, precision=cfg.precision, rngs=rngs)

    def __call__(self, g: jax.Array, hidden: jax.Array) -> jax.Array:
        """Shapes: g [B, O, H, W, value_dim], hidden [B, O, H, W, hidden_dim] -> as hidden."""
        return gated_update(per_object(self.transform, _joined(g, hidden)), hidden)


class HiddenUpdater(nnx.Module):
    """The update of every frame: from the decoder's features at strides 16, 8 and 4, and its logits."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.g16_conv = Conv(cfg.decoder_dim, cfg.up_dim, (1, 1), **options)
        self.g8_conv = Conv(cfg.up_dim, cfg.up_dim, (1, 1), **options)
        self.g4_conv = Conv(cfg.up_dim + 1, cfg.up_dim, (1, 1), **options)
        self.transform = conv3x3(cfg.up_dim + cfg.hidden_dim, 3 * cfg.hidden_dim, **options)

    def __call__(self, g16: jax.Array, g8: jax.Array, g4: jax.Array, hidden: jax.Array) -> jax.Array:
        """Shapes: g16 [B, O, H, W, C], g8 [B, O, 2H, 2W, C'], g4 [B, O, 4H, 4W, C' + 1] -> as hidden."""
        size = (g16.shape[2], g16.shape[3])
        g = per_object(self.g16_conv, g16)
        g = g + per_object(self.g8_conv, resize(g8, size, mode="area"))
        g = g + per_object(self.g4_conv, resize(g4, size, mode="area"))
        return gated_update(per_object(self.transform, _joined(g, hidden)), hidden)


def _joined(g: jax.Array, hidden: jax.Array) -> jax.Array:
    return jnp.concatenate([g, hidden.astype(g.dtype)], axis=-1)


class UpsampleBlock(nnx.Module):
    """Doubles the resolution and adds features of the image."""

    def __init__(self, skip: int, inputs: int, outputs: int, *, precision: Precision, rngs: nnx.Rngs):
        self.skip_conv = conv3x3(skip, inputs, precision=precision, rngs=rngs)
        self.out_conv = GroupResBlock(inputs, outputs, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """Shapes: x [B, 2H, 2W, C], g [B, O, H, W, C'] -> [B, O, 2H, 2W, C'']."""
        size = (x.shape[1], x.shape[2])
        return per_object(self.out_conv, self.skip_conv(x)[:, None] + resize(g, size, mode="bilinear"))
