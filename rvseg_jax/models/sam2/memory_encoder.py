"""The memory of a frame, made from its features and the mask of an object, `sam2/modeling/memory_encoder.py`."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import ACTIVATIONS
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.parallel import platform

_NORM_EPS = 1e-6
_gelu = ACTIVATIONS["gelu"]


class MaskDownSampler(nnx.Module):
    """Brings a mask to the size of the features; each step has `stride ** 2` times the channels of the one before."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        settings = cfg.memory_encoder
        stride, kernel, padding = settings.downsampler_stride, settings.downsampler_kernel, settings.downsampler_padding
        steps = settings.downsampler_steps
        if stride**steps != settings.downsampler_total_stride:
            raise ValueError(f"downsampler_total_stride {settings.downsampler_total_stride} is no power of {stride}")
        widths = [stride ** (2 * step) for step in range(steps + 1)]
        self.convs = nnx.List(
            Conv(
                before,
                after,
                (kernel, kernel),
                strides=(stride, stride),
                padding=((padding, padding),) * 2,
                precision=cfg.precision,
                rngs=rngs,
            )
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.norms = nnx.List(
            LayerNorm(width, eps=_NORM_EPS, precision=cfg.precision, rngs=rngs) for width in widths[1:]
        )
        self.out = Conv(widths[-1], cfg.d_model, (1, 1), precision=cfg.precision, rngs=rngs)

    def __call__(self, masks: jax.Array) -> jax.Array:
        """Shapes: masks [B, H, W, 1] -> [B, h, w, D]."""
        x = masks
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = _gelu(norm(conv(x)))
        return self.out(x)


class FuserBlock(nnx.Module):
    """A ConvNeXt block (Liu et al. 2022), upstream's `CXBlock`."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        settings, width, precision = cfg.memory_encoder, cfg.d_model, cfg.precision
        kernel, reach = settings.fuser_kernel, settings.fuser_kernel // 2
        self.dwconv = Conv(
            width,
            width,
            (kernel, kernel),
            padding=((reach, reach),) * 2,
            groups=width if settings.fuser_depthwise else 1,
            precision=precision,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, eps=_NORM_EPS, precision=precision, rngs=rngs)
        self.pwconv1 = Linear(width, 4 * width, precision=precision, rngs=rngs)
        self.pwconv2 = Linear(4 * width, width, precision=precision, rngs=rngs)
        scale = jnp.full((width,), 1e-6, precision.param_dtype)
        self.gamma = nnx.Param(scale) if settings.fuser_layer_scale else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, h, w, D] -> [B, h, w, D]."""
        y = self.pwconv2(_gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + (y if self.gamma is None else y * self.gamma[...].astype(y.dtype))


class Fuser(nnx.Module):
    """A run of `FuserBlock`s."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        layers = stack.stacked(lambda keys: FuserBlock(cfg, rngs=keys), cfg.memory_encoder.fuser_layers, rngs=rngs)
        self.layers = cast(FuserBlock, layers)  # with a leading [L] on every parameter

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, h, w, D] -> [B, h, w, D]."""
        # XLA's depthwise convolutions take ten times as long inside a loop on CPU.
        mode: stack.Mode = "unroll" if platform() == "cpu" else "scan"
        return stack.run(self.layers, x, _apply_block, mode=mode)[0]


class MemoryEncoder(nnx.Module):
    """Features and mask of a frame -> its memory."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        width, precision = cfg.d_model, cfg.precision
        self.mask_downsampler = MaskDownSampler(cfg, rngs=rngs)
        self.pix_feat_proj = Conv(width, width, (1, 1), precision=precision, rngs=rngs)
        self.fuser = Fuser(cfg, rngs=rngs)
        same = cfg.mem_dim == width
        self.out_proj = None if same else Conv(width, cfg.mem_dim, (1, 1), precision=precision, rngs=rngs)

    def __call__(self, features: jax.Array, masks: jax.Array) -> jax.Array:
        """Encodes masks that are already mapped to the encoder's range (upstream's `skip_mask_sigmoid`).

        Shapes: features [B, h, w, D], masks [B, H, W] with H / h the downsampler's stride -> [B, h, w, M].
        """
        x = self.pix_feat_proj(features) + self.mask_downsampler(masks[..., None])
        x = self.fuser(x)
        return x if self.out_proj is None else self.out_proj(x)


def _apply_block(block: FuserBlock, x: jax.Array) -> jax.Array:
    return block(x)


# Convolutions stay whole: their weights are small.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"fuser/layers/pwconv1/kernel$", ("layers", "embed", "mlp")),
    (r"fuser/layers/pwconv2/kernel$", ("layers", "mlp", "embed")),
    (r"(conv|convs/\d+|out|_proj)/kernel$", ()),
    (r"/(scale|bias|gamma)$", ()),
)
