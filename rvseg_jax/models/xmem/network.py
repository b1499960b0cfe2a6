"""XMem's networks: images to keys, masks to values, and values read from memory to masks.

Cheng and Schwing 2022, arXiv 2207.07115, section 3 and appendix; upstream's `model/network.py`. The memories
themselves are in `memory`, and what happens frame by frame in `inference`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.norm import BatchNorm
from rvseg_jax.models.xmem.config import STRIDE, XMemConfig
from rvseg_jax.models.xmem.modules import (
    FeatureFusion,
    HiddenReinforcer,
    HiddenUpdater,
    UpsampleBlock,
    conv3x3,
    per_object,
)
from rvseg_jax.models.xmem.resnet import BasicBlock, Bottleneck, max_pool, run_stage, stage, stem_conv
from rvseg_jax.ops.resize import resize

# Probabilities are kept this far from 0 and 1 when they are aggregated.
_MARGIN = 1e-7


class ImageFeatures(NamedTuple):
    """What the key encoder makes of images.

    Attributes:
      key: float32 [B, h, w, key_dim], at stride 16.
      shrinkage: float32 [B, h, w], at least 1: how sharply a memory element answers.
      selection: float32 [B, h, w, key_dim], 0..1: how much a query heeds each channel.
      f16, f8, f4: features at strides 16, 8 and 4.
    """

    key: jax.Array
    shrinkage: jax.Array
    selection: jax.Array
    f16: jax.Array
    f8: jax.Array
    f4: jax.Array


class KeyEncoder(nnx.Module):
    """A ResNet of bottlenecks whose features are taken at three strides."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        planes, depths, widths = cfg.key_planes, cfg.key_depths, cfg.key_features
        self.conv1 = stem_conv(3, planes[0], **options)
        self.bn1 = BatchNorm(planes[0], **options)
        self.res2 = stage(Bottleneck, planes[0], planes[0], depths[0], 1, **options)
        self.layer2 = stage(Bottleneck, widths[0], planes[1], depths[1], 2, **options)
        self.layer3 = stage(Bottleneck, widths[1], planes[2], depths[2], 2, **options)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Shapes: images [B, H, W, 3] -> features at strides 16, 8 and 4."""
        f4 = run_stage(self.res2, max_pool(jax.nn.relu(self.bn1(self.conv1(images)))))
        f8 = run_stage(self.layer2, f4)
        return run_stage(self.layer3, f8), f8, f4


class KeyProjection(nnx.Module):
    """Keys, shrinkage and selection from the features at stride 16."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        features = cfg.key_features[-1]
        self.key_proj = conv3x3(features, cfg.key_dim, **options)
        self.d_proj = conv3x3(features, 1, **options)
        self.e_proj = conv3x3(features, cfg.key_dim, **options)

    def __call__(self, f16: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Shapes: f16 [B, h, w, C] -> key [B, h, w, key_dim], shrinkage [B, h, w], selection as key."""
        key, shrinkage, selection = (layer(f16).astype(jnp.float32) for layer in self._layers())
        return key, jnp.square(shrinkage[..., 0]) + 1, jax.nn.sigmoid(selection)

    def _layers(self) -> tuple[Conv, Conv, Conv]:
        return self.key_proj, self.d_proj, self.e_proj


class ValueEncoder(nnx.Module):
    """A ResNet of plain blocks over an image and the masks of an object, joined to the image's own features."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        planes, depths = cfg.value_planes, cfg.value_depths
        self.image_conv1 = stem_conv(3, planes[0], **options)
        self.conv1 = stem_conv(cfg.mask_channels, planes[0], **options)
        self.bn1 = BatchNorm(planes[0], **options)
        self.layer1 = stage(BasicBlock, planes[0], planes[0], depths[0], 1, **options)
        self.layer2 = stage(BasicBlock, planes[0], planes[1], depths[1], 2, **options)
        self.layer3 = stage(BasicBlock, planes[1], planes[2], depths[2], 2, **options)
        self.fuser = FeatureFusion(cfg, cfg.key_features[-1], planes[2], cfg.value_dim, rngs=rngs)
        self.hidden_reinforce = HiddenReinforcer(cfg, rngs=rngs) if cfg.hidden_dim else None
        self.single_object = cfg.single_object

    def __call__(self, images: jax.Array, f16: jax.Array, masks: jax.Array) -> jax.Array:
        """Shapes: images [B, H, W, 3], f16 [B, h, w, C], masks [B, O, H, W] in 0..1 -> [B, O, h, w, value_dim]."""
        planes = masks[..., None]
        if not self.single_object:
            # The sum of the others' masks, without the object's own: its difference from the whole sum would round.
            others = jnp.einsum("bohw,op->bphw", masks, 1 - jnp.eye(masks.shape[1]), precision="highest")
            planes = jnp.stack([masks, others], axis=-1)
        g = self.image_conv1(images)[:, None] + per_object(self.conv1, planes)
        g = per_object(self._trunk, g)
        return self.fuser(f16, g)

    def _trunk(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(max_pool(self.bn1(x)))
        for blocks in (self.layer1, self.layer2, self.layer3):
            x = run_stage(blocks, x)
        return x


class Decoder(nnx.Module):
    """Values read from memory, with the sensory memory, to one logit a pixel and object."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        width4, width8, width16 = cfg.key_features
        self.fuser = FeatureFusion(cfg, width16, cfg.value_dim + cfg.hidden_dim, cfg.decoder_dim, rngs=rngs)
        self.hidden_update = HiddenUpdater(cfg, rngs=rngs) if cfg.hidden_dim else None
        self.up_16_8 = UpsampleBlock(width8, cfg.decoder_dim, cfg.up_dim, **options)
        self.up_8_4 = UpsampleBlock(width4, cfg.up_dim, cfg.up_dim, **options)
        self.pred = conv3x3(cfg.up_dim, 1, **options)

    def __call__(self, features: ImageFeatures, readout: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Shapes: readout [B, O, h, w, value_dim], hidden [B, O, h, w, hidden_dim] -> logits float32 [B, O, H, W],
        and hidden after its update."""
        g16 = self.fuser(features.f16, jnp.concatenate([readout, hidden.astype(readout.dtype)], axis=-1))
        g8 = self.up_16_8(features.f8, g16)
        g4 = self.up_8_4(features.f4, g8)
        logits = per_object(self.pred, jax.nn.relu(g4))
        if self.hidden_update is not None:
            hidden = self.hidden_update(g16, g8, jnp.concatenate([g4, logits], axis=-1), hidden)
        size = (4 * logits.shape[2], 4 * logits.shape[3])
        return resize(logits.astype(jnp.float32), size, mode="bilinear")[..., 0], hidden


class XMem(nnx.Module):
    """The networks of XMem; the number of objects is free, and all treat them alike."""

    def __init__(self, cfg: XMemConfig, *, rngs: nnx.Rngs):
        self.key_encoder = KeyEncoder(cfg, rngs=rngs)
        self.value_encoder = ValueEncoder(cfg, rngs=rngs)
        self.key_proj = KeyProjection(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)
        self.cfg = cfg

    def encode_key(self, images: jax.Array) -> ImageFeatures:
        """Keys and features of images.

        Shapes: images [B, H, W, 3], normalised by ImageNet's mean and deviation; H and W multiples of 16.

        Raises:
          InputError: for sides that are no multiples of 16.
        """
        if images.shape[1] % STRIDE or images.shape[2] % STRIDE:
            raise InputError(f"images of {images.shape[1:3]} pixels: pad both sides to multiples of {STRIDE}")
        f16, f8, f4 = self.key_encoder(self.cfg.precision.compute(images))
        return ImageFeatures(*self.key_proj(f16), f16, f8, f4)

    def encode_value(
        self, images: jax.Array, f16: jax.Array, hidden: jax.Array, masks: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Values to be kept in memory, and the sensory memory after a deep update with them.

        Shapes: images [B, H, W, 3], f16 [B, h, w, C], hidden [B, O, h, w, hidden_dim], masks [B, O, H, W] in 0..1,
        all zero for objects that are not there -> values [B, O, h, w, value_dim], hidden.
        """
        compute = self.cfg.precision.compute
        values = self.value_encoder(compute(images), f16, compute(masks))
        reinforce = self.value_encoder.hidden_reinforce
        return values, hidden if reinforce is None else reinforce(values, hidden)

    def segment(self, features: ImageFeatures, readout: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of each object by itself (see `aggregate`), and the sensory memory after its update.

        Shapes: readout [B, O, h, w, value_dim], hidden [B, O, h, w, hidden_dim] -> logits float32 [B, O, H, W], hidden.
        """
        return self.decoder(features, self.cfg.precision.compute(readout), hidden)


def aggregate(probabilities: jax.Array, present: jax.Array | None = None, *, axis: int) -> tuple[jax.Array, jax.Array]:
    """Soft aggregation (Oh et al. 2019): objects and background share each pixel by their odds.

    Shapes: probabilities float32 [..., O, ...] in 0..1 with objects along `axis`, present bool that broadcasts to
    them (objects that are there; None: all) -> logits and probabilities [..., O + 1, ...], background first. Objects
    that are not there get the logit -inf and the probability 0.

    Source: upstream's `model/aggregate.py`.
    """
    if present is not None:
        probabilities = jnp.where(present, probabilities, 0)
    background = jnp.prod(1 - probabilities, axis=axis, keepdims=True)
    every = jnp.clip(jnp.concatenate([background, probabilities], axis), _MARGIN, 1 - _MARGIN)
    logits = jnp.log(every / (1 - every))
    if present is not None:
        there = jnp.broadcast_to(present, probabilities.shape)
        there = jnp.concatenate([jnp.ones_like(background, bool), there], axis)
        logits = jnp.where(there, logits, -jnp.inf)
    return logits, jax.nn.softmax(logits, axis=axis)


def with_other_masks(kernel: jax.Array, key: jax.Array) -> jax.Array:
    """A kernel that sees an object's mask alone as one that also sees those of the others, by orthogonal weights.

    Shapes: kernel [H, W, 1, C] of `value_encoder/conv1` -> [H, W, 2, C].

    Source: `XMem.load_weights` in upstream's `model/network.py`, as training uses it between stage 0 and the next.
    """
    height, width, _, features = kernel.shape
    drawn = jax.nn.initializers.orthogonal()(key, (height * width, features), kernel.dtype)
    return jnp.concatenate([kernel, drawn.reshape(height, width, 1, features)], axis=2)


# Logical axes of the variables; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"/(fc1|fc2)/kernel$", ("conv_in", "conv_out")),
    (r"/kernel$", (None, None, "conv_in", "conv_out")),
    (r"/(scale|bias|mean|var)$", (None,)),
)
