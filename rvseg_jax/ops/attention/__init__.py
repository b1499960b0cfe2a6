"""Attention behind one call: `attention(q, k, v, mask=..., bias=...)`."""

from rvseg_jax.ops.attention.dispatch import BACKENDS, Backend, Problem, attention, chosen_backend
from rvseg_jax.ops.attention.masks import Both, Causal, Dense, Full, Lengths, Mask, Segments, Window

__all__ = [
    "BACKENDS",
    "Backend",
    "Both",
    "Causal",
    "Dense",
    "Full",
    "Lengths",
    "Mask",
    "Problem",
    "Segments",
    "Window",
    "attention",
    "chosen_backend",
]
