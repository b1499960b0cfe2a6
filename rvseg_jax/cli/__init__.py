"""The `rvseg` command."""

from rvseg_jax.cli.dispatch import main

__all__ = ["main"]
