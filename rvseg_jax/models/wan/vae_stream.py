"""Encodes and decodes clips of any length piece by piece, with device memory that does not grow with length."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.models.wan.vae import Posterior, WanVAE
from rvseg_jax.models.wan.vae_blocks import Cache


def encode_stream(vae: WanVAE, frames: Iterable[jax.Array], *, chunk: int = 1) -> Iterator[Posterior]:
    """Latents of a video that arrives in pieces, as soon as their frames are there.

    Shapes: frames: pieces [B, any, H, W, 3] in -1..1, 4n + 1 frames in all -> posteriors [B, t, H/8, W/8, z_dim]
      of 1 latent frame, then of `chunk`, at the end perhaps of fewer.

    Raises:
      ValueError: if `chunk` is below 1, or the frames end inside a latent frame; then all whole ones have been
        yielded.
    """
    graphdef, state = nnx.split(vae)
    stride, cache = vae.cfg.temporal_stride, None
    for piece in _regroup(frames, chunk, stride):
        surplus = 0 if cache is None else piece.shape[1] % stride
        if whole := piece.shape[1] - surplus:
            posterior, cache = _encode(graphdef, state, piece[:, :whole], cache)
            yield posterior
        if surplus:
            raise ValueError(
                f"the video ends {surplus} frames into a latent frame: repeat the last frame until there are "
                f"{stride}n + 1"
            )


def decode_stream(
    vae: WanVAE, latents: Iterable[jax.Array], *, chunk: int = 1, clamp: bool = True
) -> Iterator[jax.Array]:
    """Frames of latents that arrive in pieces, or that are too many to be decoded at once.

    Shapes: latents: pieces [B, any, h, w, z_dim] -> frames [B, T, 8h, 8w, out_channels], T = 1, then
      4 * chunk, at the end perhaps fewer.

    Args:
      clamp: as for `WanVAE.decode`.

    Raises:
      ValueError: if `chunk` is below 1.
    """
    graphdef, state = nnx.split(vae)
    cache = None
    for piece in _regroup(latents, chunk, 1):
        frames, cache = _decode(graphdef, state, piece, cache, clamp)
        yield frames


def _regroup(pieces: Iterable[jax.Array], chunk: int, stride: int) -> Iterator[jax.Array]:
    """The frames of `pieces` in groups of 1, then of `chunk * stride`, then what is left."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: give at least 1 latent frame")
    size, waiting = 1, None
    for piece in pieces:
        waiting = piece if waiting is None else jnp.concatenate([waiting, piece], axis=1)
        while waiting.shape[1] >= size:
            group, waiting = waiting[:, :size], waiting[:, size:]
            size = chunk * stride
            yield group
    if waiting is not None and waiting.shape[1]:
        yield waiting


# Every cache is read once, by the call that replaces it.
@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _encode(graphdef: Any, state: Any, video: jax.Array, cache: Cache) -> tuple[Posterior, Cache]:
    return nnx.merge(graphdef, state).encode_step(video, cache)


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def _decode(graphdef: Any, state: Any, latents: jax.Array, cache: Cache, clamp: bool) -> tuple[jax.Array, Cache]:
    return nnx.merge(graphdef, state).decode_step(latents, cache, clamp=clamp)
