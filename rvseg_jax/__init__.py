"""Referring video segmentation in JAX: a video and a sentence go in, a mask per frame comes out."""

__version__ = "0.1.0"
