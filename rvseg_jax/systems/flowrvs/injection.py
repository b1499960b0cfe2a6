"""Direct video injection (DVI): a second input of the DiT, joined to a network that was trained without it."""

import jax
import jax.numpy as jnp


def widened_patch_kernel(kernel: jax.Array, video_channels: int) -> jax.Array:
    """The patch embedding's kernel with input channels for the video latent behind those of the state.

    The new channels start at zero, so that the network computes what it did before, whatever the video latent is
    (FlowRVS `adapt_dit_for_concat_input`).

    Shapes:
      kernel [pt, ph, pw, Z, D] -> [pt, ph, pw, Z + video_channels, D].

    Raises:
      ValueError: if `video_channels` is not positive.
    """
    if video_channels < 1:
        raise ValueError(f"video_channels is {video_channels}: give the number of channels of the video latent")
    return jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(0, video_channels), (0, 0)])
