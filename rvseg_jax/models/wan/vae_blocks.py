"""Parts of the Wan autoencoder, each able to start a clip or to go on from where the frames before it ended.

Every part is called with a piece of a video and a cache: None at the start of a clip, later what the call on
the frames before returned. A clip in pieces gives what it gives whole, because all a causal part remembers is
the last one or two frames of its own input.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers.conv import CausalConv3d, Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.norm import RMSNorm
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.ops.attention import attention

# A pytree of arrays [B, 1 or 2, H, W, C]: last input frames of causal convolutions.
Cache = Any
Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]

WINDOW = (3, 3, 3)


def run_steps(steps: Mapping[str, Step], x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Runs parts one after the other; their caches lie in a dict under the parts' names."""
    caches = {}
    for name, step in steps.items():
        x, caches[name] = step(x, None if cache is None else cache[name])
    return x, caches


def causal_conv(cfg: WanVAEConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> CausalConv3d:
    """The 3x3x3 convolution of every block."""
    return CausalConv3d(inputs, outputs, WINDOW, impl=cfg.conv_impl, precision=cfg.precision, rngs=rngs)


def channel_norm(cfg: WanVAEConfig, features: int, *, rngs: nnx.Rngs) -> RMSNorm:
    """RMS norm as upstream's `WanRMS_norm`, which divides by max(|x|, 1e-12) and multiplies by sqrt(C)."""
    return RMSNorm(features, eps=1e-24 / features, precision=cfg.precision, rngs=rngs)


def remember(x: jax.Array, before: jax.Array | None, frames: int) -> jax.Array:
    """The last `frames` frames of `before` and then `x`; zeros stand before the start of a clip."""
    if x.shape[1] < frames:
        if before is None:
            before = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([before, x], axis=1)
    return x[:, x.shape[1] - frames :]


def convolve(conv: CausalConv3d, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """A causal convolution as a step: its cache is what its window still sees of `x`."""
    return conv(x, cache), remember(x, cache, conv.history_frames)


def frame_wise(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Applies an image layer to every frame. Shapes: [B, T, H, W, C] -> [B, T, H', W', C']."""
    y = layer(rearrange(x, "b t h w c -> (b t) h w c"))
    return rearrange(y, "(b t) h w c -> b t h w c", t=x.shape[1])


class ResidualBlock(nnx.Module):
    """Two causal convolutions with norms and SiLU in front of them, beside a shortcut."""

    def __init__(self, cfg: WanVAEConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = channel_norm(cfg, inputs, rngs=rngs)
        self.conv1 = causal_conv(cfg, inputs, outputs, rngs=rngs)
        self.norm2 = channel_norm(cfg, outputs, rngs=rngs)
        self.conv2 = causal_conv(cfg, outputs, outputs, rngs=rngs)
        # A 1x1x1 convolution.
        self.conv_shortcut = Linear(inputs, outputs, precision=cfg.precision, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T, H, W, C']."""
        steps = {
            "conv1": lambda x, cache: convolve(self.conv1, jax.nn.silu(self.norm1(x)), cache),
            "conv2": lambda x, cache: convolve(self.conv2, jax.nn.silu(self.norm2(x)), cache),
        }
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x, cache = run_steps(steps, x, cache)
        return x + shortcut, cache


class AttentionBlock(nnx.Module):
    """Attention with one head among the positions of each frame."""

    def __init__(self, cfg: WanVAEConfig, features: int, *, rngs: nnx.Rngs):
        self.norm = channel_norm(cfg, features, rngs=rngs)
        self.to_qkv = Linear(features, 3 * features, precision=cfg.precision, rngs=rngs)
        self.proj = Linear(features, features, precision=cfg.precision, rngs=rngs)
        self.precision = cfg.precision

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T, H, W, C]."""
        b, t, h, w, _ = x.shape
        tokens = rearrange(x, "b t h w c -> (b t) (h w) 1 c")
        q, k, v = jnp.split(self.to_qkv(self.norm(tokens)), 3, axis=-1)
        y = self.proj(attention(q, k, v, precision=self.precision.matmul))
        return x + rearrange(y, "(b t) (h w) 1 c -> b t h w c", b=b, t=t, h=h, w=w), cache


class MiddleBlock(nnx.Module):
    """Residual, attention, residual, at the coarsest level."""

    def __init__(self, cfg: WanVAEConfig, features: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(cfg, features, features, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(cfg, features, rngs=rngs)])

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T, H, W, C]."""
        steps = {"resnet0": self.resnets[0], "attention": self.attentions[0], "resnet1": self.resnets[1]}
        return run_steps(steps, x, cache)


class Downsample(nnx.Module):
    """Halves height and width, and time too if `temporal`, where the first frame of a clip stays alone."""

    def __init__(self, cfg: WanVAEConfig, features: int, *, temporal: bool, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        # Zeros on the right and at the bottom only.
        self.resample = Conv(features, features, (3, 3), strides=(2, 2), padding=[(0, 1), (0, 1)], **options)
        self.time_conv = (
            Conv(features, features, (3, 1, 1), strides=(2, 1, 1), impl=cfg.conv_impl, **options) if temporal else None
        )

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T', H/2, W/2, C]; T' is (T - 1)/2 + 1 at the start, then T/2."""
        x = frame_wise(self.resample, x)
        if self.time_conv is None:
            return x, None
        last = x[:, -1:]
        if cache is not None:
            return self.time_conv(jnp.concatenate([cache, x], axis=1)), last
        # The window starts at the first frame itself, without padding.
        later = [self.time_conv(x)] if x.shape[1] > 1 else []
        return jnp.concatenate([x[:, :1], *later], axis=1), last


class Upsample(nnx.Module):
    """Doubles height and width and halves the channels; doubles time too if `temporal`, but the first frame."""

    def __init__(self, cfg: WanVAEConfig, features: int, *, temporal: bool, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.resample = Conv(features, features // 2, (3, 3), padding=[(1, 1), (1, 1)], **options)
        self.time_conv = (
            CausalConv3d(features, 2 * features, (3, 1, 1), impl=cfg.conv_impl, **options) if temporal else None
        )

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T', 2H, 2W, C/2]; T' is 2(T - 1) + 1 at the start, then 2T."""
        if self.time_conv is not None:
            x, cache = _double_time(self.time_conv, x, cache)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return frame_wise(self.resample, x), cache


def _double_time(conv: CausalConv3d, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Two frames from each, which are the halves of twice as many channels."""
    # The first frame of a clip passes by, and the convolution does not see it: zeros stand in its place.
    first, x = (x[:, :1], x[:, 1:]) if cache is None else (x[:, :0], x)
    history = remember(x, cache, conv.history_frames)
    if x.shape[1]:
        x = rearrange(conv(x, cache), "b t h w (two c) -> b (t two) h w c", two=2)
    return jnp.concatenate([first, x], axis=1), history


class UpBlock(nnx.Module):
    """A level of the decoder: residual blocks, then an upsampling if there is a finer level."""

    def __init__(self, cfg: WanVAEConfig, inputs: int, outputs: int, *, temporal: bool | None, rngs: nnx.Rngs):
        widths = (inputs, *(outputs,) * (cfg.num_res_blocks + 1))
        self.resnets = nnx.List([ResidualBlock(cfg, *pair, rngs=rngs) for pair in pairwise(widths)])
        self.upsampler = None if temporal is None else Upsample(cfg, outputs, temporal=temporal, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, C] -> [B, T', H', W', C'], see `Upsample`."""
        steps: dict[str, Step] = {f"resnet{index}": block for index, block in enumerate(self.resnets)}
        if self.upsampler is not None:
            steps["upsampler"] = self.upsampler
        return run_steps(steps, x, cache)


class Encoder(nnx.Module):
    """Video to the moments of its latents, before `quant_conv`."""

    def __init__(self, cfg: WanVAEConfig, *, rngs: nnx.Rngs):
        dims = cfg.encoder_dims
        self.conv_in = causal_conv(cfg, cfg.in_channels, dims[0], rngs=rngs)
        blocks: list[nnx.Module] = []
        for level, (inputs, outputs) in enumerate(pairwise(dims)):
            for index in range(cfg.num_res_blocks):
                blocks.append(ResidualBlock(cfg, outputs if index else inputs, outputs, rngs=rngs))
            if level < len(cfg.temporal_downsample):
                temporal = cfg.temporal_downsample[level]
                blocks.append(Downsample(cfg, outputs, temporal=temporal, rngs=rngs))
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MiddleBlock(cfg, dims[-1], rngs=rngs)
        self.norm_out = channel_norm(cfg, dims[-1], rngs=rngs)
        self.conv_out = causal_conv(cfg, dims[-1], 2 * cfg.z_dim, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, T, H, W, 3] -> [B, t, h, w, 2 z_dim]."""
        steps: dict[str, Step] = {
            "conv_in": partial(convolve, self.conv_in),
            **{f"down_block{index}": block for index, block in enumerate(self.down_blocks)},
            "mid_block": self.mid_block,
            "conv_out": lambda x, cache: convolve(self.conv_out, jax.nn.silu(self.norm_out(x)), cache),
        }
        return run_steps(steps, x, cache)


class Decoder(nnx.Module):
    """Latents, after `post_quant_conv`, to video."""

    def __init__(self, cfg: WanVAEConfig, *, rngs: nnx.Rngs):
        dims = cfg.decoder_dims
        self.conv_in = causal_conv(cfg, cfg.z_dim, dims[0], rngs=rngs)
        self.mid_block = MiddleBlock(cfg, dims[0], rngs=rngs)
        upsamplings = (*reversed(cfg.temporal_downsample), None)
        self.up_blocks = nnx.List(
            [
                # All but the first level get the halved channels that an upsampling leaves.
                UpBlock(cfg, inputs // 2 if level else inputs, outputs, temporal=temporal, rngs=rngs)
                for level, ((inputs, outputs), temporal) in enumerate(zip(pairwise(dims), upsamplings, strict=True))
            ]
        )
        self.norm_out = channel_norm(cfg, dims[-1], rngs=rngs)
        self.conv_out = causal_conv(cfg, dims[-1], cfg.out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """Shapes: x [B, t, h, w, z_dim] -> [B, T, H, W, out_channels]."""
        steps: dict[str, Step] = {
            "conv_in": partial(convolve, self.conv_in),
            "mid_block": self.mid_block,
            **{f"up_block{index}": block for index, block in enumerate(self.up_blocks)},
            "conv_out": lambda x, cache: convolve(self.conv_out, jax.nn.silu(self.norm_out(x)), cache),
        }
        return run_steps(steps, x, cache)
