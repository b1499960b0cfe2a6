"""Fusion of geometry, camera and flow features, `MotionAwareDecoder` of upstream."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.ops.resize import resize

# Pixels that three convolutions with a window of 3 see around the two by two in the middle of a patch.
_WINDOW = 8


class FlowEncoder(nnx.Module):
    """Three convolutions on the magnitude of the flow, and the mean of the four pixels in the middle of each patch.

    Upstream resizes the features of all pixels to the grid of patches by a bilinear filter without antialiasing, which
    reads no other pixels where the side of a patch is even.
    """

    def __init__(self, cfg: GeoMotionConfig, *, rngs: nnx.Rngs):
        sizes = (1, *cfg.flow_channels)
        self.convs = nnx.List(
            [
                Conv(inputs, outputs, (3, 3), precision=cfg.precision, rngs=rngs)
                for inputs, outputs in zip(sizes, sizes[1:], strict=False)
            ]
        )
        self.patch_size = cfg.pi3.patch_size
        side, even = self.patch_size, self.patch_size % 2 == 0
        self.windows = cfg.flow_windows and even and side >= _WINDOW

    def __call__(self, flow: jax.Array) -> jax.Array:
        """Shapes: flow [B, H, W] in pixels -> [B, h w, C]."""
        return self.in_windows(flow) if self.windows else self.on_whole_frames(flow)

    def in_windows(self, flow: jax.Array) -> jax.Array:
        """The features from the pixels that they depend on alone, about thirty times less work. Shapes: as called."""
        side, first = self.patch_size, (self.patch_size - _WINDOW) // 2
        patches = rearrange(flow, "b (h p) (w q) -> (b h w) p q 1", p=side, q=side)
        x = patches[:, first : first + _WINDOW, first : first + _WINDOW]
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return rearrange(x.mean(axis=(1, 2)), "(b n) c -> b n c", b=len(flow))

    def on_whole_frames(self, flow: jax.Array) -> jax.Array:
        """The features as upstream computes them. Shapes: as called."""
        grid = (flow.shape[1] // self.patch_size, flow.shape[2] // self.patch_size)
        return rearrange(resize(self.of_pixels(flow), grid, mode="bilinear"), "b h w c -> b (h w) c")

    def of_pixels(self, flow: jax.Array) -> jax.Array:
        """Features of every pixel. Shapes: flow [B, H, W] -> [B, H, W, C]."""
        x = flow[..., None]
        for conv in self.convs:
            x = jax.nn.relu(conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))
        return x


class MotionAwareDecoder(nnx.Module):
    """Tokens for the motion decoder: registers see the geometry alone, patches also flow and camera."""

    def __init__(self, cfg: GeoMotionConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        blocks = len(cfg.low_blocks) + len(cfg.pi3.heads_from)
        seen = cfg.feature_width + cfg.flow_channels[-1] + cfg.pi3.camera_width
        self.feature_proj = Linear(blocks * cfg.pi3.width, cfg.feature_width, **options)
        self.flow_encoder = FlowEncoder(cfg, rngs=rngs)
        self.fusion_proj = Linear(seen, cfg.feature_width, **options)
        self.registers = cfg.pi3.register_tokens

    def __call__(self, low: jax.Array, high: jax.Array, camera: jax.Array, flow: jax.Array) -> jax.Array:
        """Fused tokens, a row a frame.

        Shapes:
          low, high [B, R + h w, 2 D]: outputs of two blocks each, side by side
          camera [B, R + h w, camera_width]: output of the camera decoder
          flow [B, H, W]: magnitude in pixels
          -> [B, R + h w, feature_width].
        """
        features = jax.nn.relu(self.feature_proj(jnp.concatenate([low, high], axis=-1)))
        registers, patches = features[:, : self.registers], features[:, self.registers :]
        patches = jnp.concatenate([patches, self.flow_encoder(flow), camera[:, self.registers :]], axis=-1)
        return jnp.concatenate([registers, self.fusion_proj(patches)], axis=1)
