"""Conversion between PyTorch checkpoints and rvseg_jax; the only place that knows torch key names."""
