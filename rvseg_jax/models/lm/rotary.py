"""Rotary angles of a language model's tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.models.lm.config import LanguageModelConfig

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines, two float32 [B, T, H // 2]."""


def rotary(cfg: LanguageModelConfig, positions: jax.Array) -> Rope:
    """Cosines and sines for tokens at `positions`, in float32 as upstream computes them.

    Shapes: positions int [B, T], or [3, B, T] (time, height, width) with `mrope_section` -> two [B, T, H // 2].

    Raises:
      ValueError: for positions of another rank.
    """
    if positions.ndim not in (2, 3) or (positions.ndim == 3 and (cfg.mrope_section is None or positions.shape[0] != 3)):
        wanted = "[B, T]" if cfg.mrope_section is None else "[B, T] or [3, B, T]"
        raise ValueError(f"positions have shape {positions.shape}: give {wanted}")
    frequencies = _frequencies(cfg, positions)
    if positions.ndim == 3:
        assert cfg.mrope_section is not None
        axis = np.repeat(np.arange(3), cfg.mrope_section)
        angles = jnp.moveaxis(positions[axis], 0, -1).astype(jnp.float32) * frequencies
    else:
        angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _frequencies(cfg: LanguageModelConfig, positions: jax.Array) -> jax.Array:
    """Radians a position, float32 [H // 2] or, where the base grows, [B, 1, H // 2].

    The growing base goes by the last position of each row, so that a row does not depend on its neighbours;
    `InternLM2DynamicNTKScalingRotaryEmbedding` takes the length of the padded batch, which is the same for positions
    0..T-1.
    """
    width = cfg.head_width
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    if cfg.rope_scaling is None:
        return jnp.asarray(np.float32(1) / np.float32(cfg.rope_theta) ** exponents)
    last = positions.max(axis=-1) if positions.ndim == 2 else positions.max(axis=(0, -1))
    trained = cfg.max_position_embeddings
    length = jnp.maximum(last + 1, trained).astype(jnp.float32)
    growth = cfg.rope_scaling * length / trained - (cfg.rope_scaling - 1)
    base = cfg.rope_theta * growth ** (width / (width - 2))
    return 1 / base[:, None, None] ** exponents
