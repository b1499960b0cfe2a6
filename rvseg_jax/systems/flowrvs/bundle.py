"""Small checkpoints as training writes them and as the library ships them.

<folder>/flowrvs.json          settings of the system and config of each part; written last
<folder>/<part>.safetensors    weights under upstream's keys, "wan_dit", "wan_vae" or "umt5"
<folder>/tokenizer.json

They go through the conversion tables like any checkpoint of upstream's; a folder may hold some of the parts.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import Precision
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig

DESCRIPTION = "flowrvs.json"
TOKENIZER = "tokenizer.json"
FIELDS = {"wan_dit": "dit", "wan_vae": "vae", "umt5": "text"}


def is_bundle(folder: str | Path) -> bool:
    """Whether `folder` was written by `save`."""
    return (Path(folder) / DESCRIPTION).is_file()


def save(
    folder: str | Path,
    modules: Mapping[str, nnx.Module],
    *,
    config: FlowRVSConfig | None = None,
    tokenizer: Path | None = None,
    dtype: Any = jnp.float32,
) -> None:
    """Writes parts; each file appears under its name when it is complete.

    Args:
      modules: {"wan_vae": module, ...}; parts that lie in the folder already stay.
      config: settings of the system, for a folder that holds all of it.
      tokenizer: file to copy in.
      dtype: number format of the weights.

    Raises:
      OSError: if the folder cannot be written.
    """
    from safetensors.numpy import save_file

    from rvseg_jax.convert.api import to_torch
    from rvseg_jax.convert.manifest import config_fields

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = _description(folder) if is_bundle(folder) else {"parts": {}}
    for part, module in modules.items():
        tensors = to_torch(part, module).items()
        partial = folder / f"{part}.safetensors.partial-{os.getpid()}"
        save_file({key: np.ascontiguousarray(value.astype(dtype)) for key, value in tensors}, partial)
        os.chmod(partial, 0o644)  # the writer makes files that only their owner may read
        os.replace(partial, _weights(folder, part))
        stored["parts"][part] = config_fields(module.cfg)  # type: ignore[attr-defined]
    if tokenizer is not None and tokenizer.resolve() != (folder / TOKENIZER).resolve():
        shutil.copyfile(tokenizer, folder / TOKENIZER)
    if config is not None:
        names = [field.name for field in dataclasses.fields(config) if field.name not in FIELDS.values()]
        stored["settings"] = {name: getattr(config, name) for name in names}
    partial = folder / f"{DESCRIPTION}.partial-{os.getpid()}"
    partial.write_text(json.dumps(stored, indent=1) + "\n")
    os.replace(partial, folder / DESCRIPTION)


def load_config(folder: str | Path, precision: Precision) -> FlowRVSConfig:
    """The system's settings and the configs of its parts.

    Raises:
      InputError: if the folder holds no complete system, or its description does not fit.
    """
    stored = _description(Path(folder))
    parts: dict[str, Any] = {
        field: _part_config(Path(folder), stored, part, precision) for part, field in FIELDS.items()
    }
    if "settings" not in stored:
        raise InputError(f"{folder} holds single parts, no whole FlowRVS: export the DiT stage into it")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["settings"].items()}
    try:
        return FlowRVSConfig(**settings, **parts)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}/{DESCRIPTION} cannot be used: {error}") from error


def load_part(folder: str | Path, part: str, precision: Precision) -> nnx.Module:
    """One part with its weights.

    Raises:
      InputError: if the folder is no such checkpoint or lacks the part, or its weights do not fit.
    """
    from rvseg_jax.convert.api import from_torch
    from rvseg_jax.convert.safetensors_file import read_safetensors

    folder = Path(folder)
    config = _part_config(folder, _description(folder), part, precision)
    return from_torch(part, read_safetensors(_weights(folder, part)), config)


def _description(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {DESCRIPTION}: give the folder of a FlowRVS checkpoint") from None
    except ValueError as error:
        raise InputError(f"{folder}/{DESCRIPTION} is no JSON: {error}") from None


def _part_config(folder: Path, stored: Mapping[str, Any], part: str, precision: Precision) -> Any:
    from rvseg_jax.convert import registry
    from rvseg_jax.convert.manifest import config_from

    if part not in stored.get("parts", {}) or not _weights(folder, part).is_file():
        raise InputError(f"{folder} holds no {part}: train or convert it first")
    return config_from(registry.part(part).config_class(), stored["parts"][part], precision)


def fingerprint(folder: str | Path, part: str) -> str:
    """SHA-256 of a part's weights, to tell what was made from them."""
    return hashlib.sha256(_weights(Path(folder), part).read_bytes()).hexdigest()


def _weights(folder: Path, part: str) -> Path:
    return folder / f"{part}.safetensors"
