"""FlowRVS as a small checkpoint: which parts it has, and its settings; the files are those of `parts.bundle`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import Precision
from rvseg_jax.parts import bundle
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig

NAME = "flowrvs"
TOKENIZER = "tokenizer.json"
FIELDS = {"wan_dit": "dit", "wan_vae": "vae", "umt5": "text"}


def save(
    folder: str | Path,
    modules: Mapping[str, nnx.Module],
    *,
    config: FlowRVSConfig | None = None,
    tokenizer: Path | None = None,
    dtype: Any = jnp.float32,
) -> None:
    """Writes parts; see `parts.bundle.save`.

    Args:
      config: settings of the system, for a folder that holds all of it.
      tokenizer: file to copy in.
    """
    settings = None
    if config is not None:
        names = [field.name for field in dataclasses.fields(config) if field.name not in FIELDS.values()]
        settings = {name: getattr(config, name) for name in names}
    files = {} if tokenizer is None else {TOKENIZER: tokenizer}
    bundle.save(folder, NAME, modules, settings=settings, files=files, dtype=dtype)


def load_config(folder: str | Path, precision: Precision) -> FlowRVSConfig:
    """The system's settings and the configs of its parts.

    Raises:
      InputError: if the folder holds no complete FlowRVS, or its description does not fit.
    """
    stored = bundle.description(folder, NAME)
    parts: dict[str, Any] = {field: bundle.part_config(folder, part, precision) for part, field in FIELDS.items()}
    if "settings" not in stored:
        raise InputError(f"{folder} holds single parts, no whole FlowRVS: export the DiT stage into it")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["settings"].items()}
    try:
        return FlowRVSConfig(**settings, **parts)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}/{bundle.DESCRIPTION} cannot be used: {error}") from error
