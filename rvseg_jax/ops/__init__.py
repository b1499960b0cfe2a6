"""Operations that several models share: attention, resize, grid_sample."""

from rvseg_jax.ops.attention import Causal, Dense, Full, Lengths, Mask, Segments, Window, attention, chosen_backend
from rvseg_jax.ops.grid_sample import grid_sample
from rvseg_jax.ops.resize import resize

__all__ = [
    "Causal",
    "Dense",
    "Full",
    "Lengths",
    "Mask",
    "Segments",
    "Window",
    "attention",
    "chosen_backend",
    "grid_sample",
    "resize",
]
