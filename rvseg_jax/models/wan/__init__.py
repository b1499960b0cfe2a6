"""Wan 2.1: video diffusion transformer and causal video autoencoder."""
