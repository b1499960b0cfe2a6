"""The Wan 2.1 causal video autoencoder, and FlowRVS's variant that decodes to mask logits.

Written after `diffusers/models/autoencoders/autoencoder_kl_wan.py`; parameter paths follow its names. Upstream
walks through a clip one latent frame at a time with a list of cached features. Here a clip is encoded and
decoded whole, which gives the same numbers, or in chunks of bounded memory.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.wan.vae_blocks import Cache, Decoder, Encoder
from rvseg_jax.models.wan.vae_config import WanVAEConfig, decode_flops, encode_flops
from rvseg_jax.parallel import constrain

__all__ = ["SHARDING", "Posterior", "WanVAE", "WanVAEConfig", "decode_flops", "encode_flops"]

LOGVAR_RANGE = (-30.0, 20.0)

Out = TypeVar("Out")


class Posterior(NamedTuple):
    """Diagonal Gaussian over the latents of a clip.

    Shapes: mean and logvar [B, t, h, w, z_dim]; logvar lies in -30..20.
    """

    mean: jax.Array
    logvar: jax.Array

    @property
    def std(self) -> jax.Array:
        """Standard deviation, [B, t, h, w, z_dim]."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, key: jax.Array | None = None, *, noise: jax.Array | None = None) -> jax.Array:
        """A draw: mean + std * noise, where the noise is given or drawn from `key`.

        Shapes: noise [B, t, h, w, z_dim] -> [B, t, h, w, z_dim].

        Raises:
          ValueError: for both or neither of `key` and `noise`.
        """
        if (key is None) == (noise is None):
            raise ValueError("give either a key or the noise itself")
        if key is not None:
            noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + self.std * jnp.asarray(noise, self.mean.dtype)

    def kl(self) -> jax.Array:
        """Kullback-Leibler divergence from the standard normal, in nats, summed over a clip: float32 [B]."""
        mean, logvar = self.mean.astype(jnp.float32), self.logvar.astype(jnp.float32)
        return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3, 4))


class WanVAE(nnx.Module):
    """Causal video autoencoder (Wan 2.1, arXiv 2503.20314).

    A latent cell stands for 8x8 pixels, and for 4 frames, but the first latent frame for the first frame alone.
    """

    def __init__(self, cfg: WanVAEConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        # Both are 1x1x1 convolutions.
        self.quant_conv = Linear(2 * cfg.z_dim, 2 * cfg.z_dim, precision=cfg.precision, rngs=rngs)
        self.post_quant_conv = Linear(cfg.z_dim, cfg.z_dim, precision=cfg.precision, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)

    def encode(self, video: jax.Array, *, chunk: int | None = None) -> Posterior:
        """Latents of a video.

        Shapes: video [B, T, H, W, 3] in -1..1, T = 4n + 1, H and W multiples of 8 -> [B, n + 1, H/8, W/8, z_dim].

        Args:
          chunk: latent frames computed at a time. Memory then no longer grows with T, at equal results; None
            computes all at once.

        Raises:
          ValueError: for a shape that does not fit, with the cure.
        """
        self._check_video(video.shape)
        if (video.shape[1] - 1) % self.cfg.temporal_stride:
            raise ValueError(
                f"a video of {video.shape[1]} frames: repeat the last one until there are "
                f"{self.cfg.temporal_stride}n + 1"
            )
        return _in_chunks(self.encode_step, video, chunk, self.cfg.temporal_stride)

    def decode(self, latents: jax.Array, *, clamp: bool = True, chunk: int | None = None) -> jax.Array:
        """Video, or mask logits, of latents that are not normalised.

        Shapes: latents [B, n + 1, h, w, z_dim] -> [B, 4n + 1, 8h, 8w, out_channels].

        Args:
          clamp: whether the output is cut to -1..1, as upstream does for mask logits too. Its gradient is zero
            beyond; losses on mask logits want the output as it is.
          chunk: as for `encode`.

        Raises:
          ValueError: for a shape that does not fit.
        """
        return _in_chunks(lambda z, cache: self.decode_step(z, cache, clamp=clamp), latents, chunk, 1)

    def encode_step(self, video: jax.Array, cache: Cache = None) -> tuple[Posterior, Cache]:
        """Latents of the next frames of a video, and what the frames after them need.

        Shapes: video [B, T, H, W, 3] in -1..1 with T = 4n + 1 at the start, then 4n -> t = n + 1, then n.

        Args:
          cache: None at the start, later what the call before returned. All calls but the first return
            caches of the same shapes.
        """
        self._check_video(video.shape)
        video = constrain(self.cfg.precision.compute(video), "batch", None, None, None, None)
        features, cache = self.encoder(video, cache)
        mean, logvar = jnp.split(self.quant_conv(features), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE)), cache

    def decode_step(self, latents: jax.Array, cache: Cache = None, *, clamp: bool = True) -> tuple[jax.Array, Cache]:
        """Output of the next latents, and what those after them need; `cache` as for `encode_step`.

        Shapes: latents [B, n, h, w, z_dim] -> [B, T, 8h, 8w, out_channels], T = 4n - 3 at the start, then 4n.
        """
        if latents.ndim != 5 or latents.shape[-1] != self.cfg.z_dim:
            raise ValueError(f"latents must be [B, t, h, w, {self.cfg.z_dim}], got {tuple(latents.shape)}")
        latents = constrain(self.cfg.precision.compute(latents), "batch", None, None, None, None)
        video, cache = self.decoder(self.post_quant_conv(latents), cache)
        return jnp.clip(video, -1, 1) if clamp else video, cache

    def normalise(self, latents: jax.Array) -> jax.Array:
        """Latents with their channels shifted and scaled to mean 0 and deviation 1 over Wan's training data.

        Mean and deviation are rounded to the format of the latents first, as upstream does.

        Shapes: [..., z_dim] -> [..., z_dim].
        """
        return (latents - self._statistic("latents_mean", latents)) / self._statistic("latents_std", latents)

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """The inverse of `normalise`. Shapes: [..., z_dim] -> [..., z_dim]."""
        return latents * self._statistic("latents_std", latents) + self._statistic("latents_mean", latents)

    def _statistic(self, name: str, latents: jax.Array) -> jax.Array:
        return jnp.asarray(getattr(self.cfg, name), latents.dtype)

    def _check_video(self, shape: tuple[int, ...]) -> None:
        cfg = self.cfg
        if len(shape) != 5 or shape[-1] != cfg.in_channels:
            raise ValueError(f"video must be [B, T, H, W, {cfg.in_channels}], got {tuple(shape)}")
        if shape[2] % cfg.spatial_stride or shape[3] % cfg.spatial_stride:
            raise ValueError(f"frames of {shape[2]}x{shape[3]}: resize them to multiples of {cfg.spatial_stride}")


def _in_chunks(
    step: Callable[[jax.Array, Cache], tuple[Out, Cache]], x: jax.Array, chunk: int | None, stride: int
) -> Out:
    """Runs `step` over all of `x`, or over `chunk` times `stride` frames at a time in a scan.

    The frames that do not fill a chunk go first, together with the one that starts the clip.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}: give at least 1 latent frame, or None for all")
    size = x.shape[1] if chunk is None else chunk * stride
    first = 1 + (x.shape[1] - 1) % size
    start, cache = step(x[:, :first], None)
    if first == x.shape[1]:
        return start
    pieces = rearrange(x[:, first:], "b (n t) ... -> n b t ...", t=size)
    _, rest = jax.lax.scan(lambda cache, piece: step(piece, cache)[::-1], cache, pieces)
    return jax.tree.map(
        lambda a, b: jnp.concatenate([a, rearrange(b, "n b t ... -> b (n t) ...")], axis=1), start, rest
    )


# Logical axes of the parameters. The first pattern that is found in a path counts.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)(conv1|conv2|conv_in|conv_out|time_conv)/kernel$", (None, None, None, "conv_in", "conv_out")),
    (r"/resample/kernel$", (None, None, "conv_in", "conv_out")),
    (r"(^|/)(conv_shortcut|quant_conv|post_quant_conv|to_qkv|proj)/kernel$", ("conv_in", "conv_out")),
    (r"/(scale|bias)$", (None,)),
)
