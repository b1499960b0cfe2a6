"""Operations that several models share: attention, correlation, resize, grid_sample."""

from rvseg_jax.ops.attention import Causal, Dense, Full, Lengths, Mask, Segments, Window, attention, chosen_backend
from rvseg_jax.ops.correlation import Correlation, correlate, read_windows
from rvseg_jax.ops.grid_sample import grid_sample
from rvseg_jax.ops.resize import resize

__all__ = [
    "Causal",
    "Correlation",
    "Dense",
    "Full",
    "Lengths",
    "Mask",
    "Segments",
    "Window",
    "attention",
    "chosen_backend",
    "correlate",
    "grid_sample",
    "read_windows",
    "resize",
]
