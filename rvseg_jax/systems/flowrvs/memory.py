"""How much memory the activations of FlowRVS take, and the window of a long clip that fits.

The counts are of arrays that live at the same time in the widest place of each pass, from the network's sizes;
`tests/systems/test_flowrvs_memory.py` holds them against what XLA allocates.
"""

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig

# Live arrays in the widest place of a pass. DiT: residual stream, its normalised copy, q, k, v and the output, in
# units of the width; both sides of the GELU, in units of ffn_dim; scores of short clips, whose attention is not
# chunked, up to the bound that `ops.attention` sets.
DIT_WIDTHS = 6
DIT_FFN_WIDTHS = 2
SCORE_COPIES = 3
SCORE_BOUND = 2**28
# Autoencoder: full-resolution features around the decoder's last upsampling, with the time taps of a folded
# convolution beside each other, in units of the base width.
VAE_WIDTHS = 15
# An autoencoder pass below this size runs whole, which is faster; above it, one latent frame at a time.
WHOLE_PASS_BYTES = 2**30
# Windows shorter than this are not traded for more sentences at a time.
COMFORTABLE_WINDOW = 81


def longest_window(config: FlowRVSConfig) -> int:
    """Frames that the DiT's rotary tables reach over: 4,093 for the published model."""
    latents = config.dit.rope_max_seq_len * config.dit.patch_size[0]
    return (latents - 1) * config.vae.temporal_stride + 1


def _itemsize(config: FlowRVSConfig) -> int:
    return np.dtype(config.dit.precision.compute_dtype).itemsize


def dit_bytes(config: FlowRVSConfig, frames: int, size: tuple[int, int], sentences: int) -> int:
    """Bytes of the DiT's activations.

    Args:
      frames, size: of the clip as the model sees it, (H, W) in pixels.
      sentences: sentences that run as one batch.
    """
    dit, vae = config.dit, config.vae
    cell = vae.spatial_stride**2 * int(np.prod(dit.patch_size))
    latent_frames = (frames + 2) // 4 + 1
    tokens = latent_frames * size[0] * size[1] // cell
    widths = DIT_WIDTHS * dit.inner_dim + DIT_FFN_WIDTHS * dit.ffn_dim
    scores = SCORE_COPIES * 4 * sentences * dit.num_attention_heads * tokens**2
    return sentences * tokens * widths * _itemsize(config) + min(scores, SCORE_BOUND)


def vae_bytes(config: FlowRVSConfig, frames: int, size: tuple[int, int]) -> int:
    """Bytes of the autoencoder's activations for `frames` frames at once."""
    return frames * size[0] * size[1] * VAE_WIDTHS * config.vae.base_dim * _itemsize(config)


def vae_chunk(config: FlowRVSConfig, frames: int, size: tuple[int, int]) -> int | None:
    """Latent frames that the autoencoder treats at a time; None for all."""
    return None if vae_bytes(config, frames, size) <= WHOLE_PASS_BYTES else 1


def clip_bytes(config: FlowRVSConfig, frames: int, size: tuple[int, int], sentences: int) -> int:
    """Bytes of activations of a window: the widest pass, and the pixels and logits that are kept."""
    together = frames if vae_chunk(config, frames, size) is None else config.vae.temporal_stride
    kept = frames * size[0] * size[1] * (3 + 4 * sentences)
    return max(dit_bytes(config, frames, size, sentences), vae_bytes(config, together, size)) + kept


def fitting_window(config: FlowRVSConfig, size: tuple[int, int], sentences: int, max_memory: int) -> tuple[int, int]:
    """Frames of a window, and sentences of a batch, whose activations stay below `max_memory` bytes.

    The longest window wins; sentences are batched as long as windows stay comfortably long.

    Raises:
      InputError: if not even five frames and one sentence fit.
    """
    for batch in range(sentences, 0, -1):
        lengths = range(longest_window(config), 4, -config.vae.temporal_stride)
        length = next((n for n in lengths if clip_bytes(config, n, size, batch) <= max_memory), None)
        if length is not None and (batch == 1 or length >= COMFORTABLE_WINDOW):
            return length, batch
    needed = clip_bytes(config, 5, size, 1)
    raise InputError(
        f"{max_memory / 2**30:.2f} GiB is too little memory: five frames of {size[1]}x{size[0]} need "
        f"{needed / 2**30:.2f} GiB; raise --max-memory, or use --dtype bfloat16"
    )
