"""Will a training run fit a TPU slice, and on which mesh: answered without one."""

from rvseg_jax.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
