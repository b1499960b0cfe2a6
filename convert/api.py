"""Modules from torch tensors and back, for callers that hold the tensors or know the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from rvseg_jax.convert import engine, registry
from rvseg_jax.convert.fit import fit
from rvseg_jax.convert.sources import Checkpoint, Weights, open_checkpoint, strip_prefixes
from rvseg_jax.convert.tensors import Tensors
from rvseg_jax.core.errors import InputError

Source = Mapping[str, Any] | str | Path | Sequence[str | Path]


def from_torch(
    name: str,
    source: Source,
    config: Any = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    precision: Any = None,
    weights: Weights = "auto",
) -> nnx.Module:
    """The module of a part with the weights of its torch original.

    Args:
      name: of the part, as in `convert.registry.PARTS`.
      source: {torch key: numpy array}, or weight files: a file, a folder, or several files that together make
        one checkpoint.
      config: the part's configuration; without it that of upstream's `config.json` beside the weights, or
        the published size that fits.
      mesh: where the leaves go, by the model's sharding rules; without it they go to the first device.
      precision: a `Precision` or its name, in place of the one in `config`.
      weights: "ema", "model", or "auto" for the EMA of a training checkpoint where there is one.

    Raises:
      InputError: for an unknown part.
      ConversionError: if files cannot be read, or keys and shapes do not fit the model.
    """
    part = registry.part(name)
    if isinstance(source, Mapping):
        arrays, prefix = strip_prefixes(source, ("module.", *part.prefixes))
        named = Tensors({key: np.asarray(value) for key, value in arrays.items()})
        checkpoint = Checkpoint(named, prefix=prefix)
    else:
        checkpoint = open_checkpoint(source, weights=weights, prefixes=part.prefixes)
    found = fit(part, checkpoint, config, precision=precision)
    shardings = engine.placements(part, found.skeleton.shapes, mesh)
    return engine.fill(found.plan, found.match, found.skeleton, found.tensors, shardings=shardings)


def to_torch(
    name: str, module: nnx.Module, config: Any = None, *, aliases: bool = False, layout: str = ""
) -> dict[str, np.ndarray]:
    """The tensors of the torch original, from a module of a part; the inverse of `from_torch`.

    Args:
      config: the part's configuration, `module.cfg` if not given.
      aliases: whether keys that repeat another one (tied weights) are written too.
      layout: of the keys, one of the part's layouts or that of the original.
    """
    part = registry.part(name)
    config = getattr(module, "cfg", None) if config is None else config
    if config is None:
        raise InputError(f"{type(module).__name__} does not carry its configuration: give it as `config`")
    plan, _ = engine.plan_for(part, config, layout)
    return engine.to_tensors(plan, engine.leaves_of(module), aliases=aliases)
