"""The config that every recipe starts from.

    from rvseg_jax.configs import base

    def get_config():
        config = base.get_config("flowrvs.dit")
        config.steps = 20_000
        ...
        return config

What the common fields mean is written at `rvseg_jax.training.config.RunConfig` and its sections; the fields
of a task are written at its `Config` class. Assigning a name that does not exist, or a value of another type,
raises with the nearest known name.
"""

from ml_collections import ConfigDict

from rvseg_jax.training import config


def get_config(task: str) -> ConfigDict:
    """Common fields and those of `task`, at their defaults.

    Args:
      task: a name of `rvseg_jax.training.tasks`, such as "flowrvs.dit", or "package.module:Class".
    """
    return config.default(task)
