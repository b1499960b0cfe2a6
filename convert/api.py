"""Modules from torch tensors and back, for callers that hold the tensors or know the files."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from rvseg_jax.convert import engine, registry


def from_torch(
    name: str,
    tensors: Mapping[str, Any],
    config: Any = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    precision: Any = None,
) -> nnx.Module:
    """The module of a part with the weights of its torch original.

    Args:
      name: "wan_dit", "wan_vae" or "umt5".
      tensors: {torch key: numpy array}.
      config: the part's configuration.
      mesh: where the leaves go, by the model's sharding rules; without it they go to the first device.
      precision: a `Precision` or its name, in place of the one in `config`.

    Raises:
      ConversionError: if keys or shapes do not fit the model.
    """
    part = registry.part(name)
    config = engine.with_precision(config, precision)
    arrays = {key: np.asarray(value) for key, value in tensors.items()}
    return engine.build(part, config, arrays)


def to_torch(name: str, module: nnx.Module, config: Any = None, *, aliases: bool = False) -> dict[str, np.ndarray]:
    """The tensors of the torch original, from a module of a part; the inverse of `from_torch`.

    Args:
      config: the part's configuration, `module.cfg` if not given.
      aliases: whether keys that repeat another one (tied weights) are written too.
    """
    part = registry.part(name)
    plan, _ = engine.plan_for(part, module.cfg if config is None else config)
    return engine.to_tensors(plan, engine.leaves_of(module), aliases=aliases)
