"""Small checkpoints as training writes them and as the library ships them.

<folder>/bundle.json           name of the system or tracker, its settings, and config of each part; written last
<folder>/<part>.safetensors    weights under upstream's keys
<folder>/<other files>         such as tokenizer.json

They go through the conversion tables like any checkpoint of upstream's; a folder may hold some of the parts.
"""

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

DESCRIPTION = "bundle.json"


def is_bundle(folder: str | Path) -> bool:
    """Whether `folder` was written by `save`."""
    return (Path(folder) / DESCRIPTION).is_file()


def save(
    folder: str | Path,
    name: str,
    modules: Mapping[str, nnx.Module],
    *,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    dtype: Any = jnp.float32,
) -> None:
    """Writes parts; each file appears under its name when it is complete.

    Args:
      name: of the system or tracker.
      modules: {"wan_vae": module, ...}; parts that lie in the folder already stay.
      settings: its settings, for a folder that holds all of it.
      files: files to copy in, by the names that they get.
      dtype: number format of the weights.

    Raises:
      OSError: if the folder cannot be written.
    """
    from safetensors.numpy import save_file

    from rvseg_jax.convert.api import to_torch
    from rvseg_jax.convert.manifest import config_fields

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = description(folder) if is_bundle(folder) else {"parts": {}}
    stored["name"] = name
    for part, module in modules.items():
        tensors = to_torch(part, module).items()
        partial = folder / f"{part}.safetensors.partial-{os.getpid()}"
        save_file({key: np.ascontiguousarray(value.astype(dtype)) for key, value in tensors}, partial)
        os.chmod(partial, 0o644)  # the writer makes files that only their owner may read
        os.replace(partial, _weights(folder, part))
        stored["parts"][part] = config_fields(module.cfg)  # type: ignore[attr-defined]
    for target, source in (files or {}).items():
        if source.resolve() != (folder / target).resolve():
            shutil.copyfile(source, folder / target)
    if settings is not None:
        stored["settings"] = dict(settings)
    partial = folder / f"{DESCRIPTION}.partial-{os.getpid()}"
    partial.write_text(json.dumps(stored, indent=1) + "\n")
    os.replace(partial, folder / DESCRIPTION)


def description(folder: str | Path, name: str | None = None) -> dict[str, Any]:
    """What `save` wrote: {"name", "parts": {part: config}, "settings" where the folder holds all of it}.

    Args:
      name: the system or tracker that it has to be of.

    Raises:
      InputError: if the folder is none of `save`, or of something else.
    """
    path = Path(folder) / DESCRIPTION
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {DESCRIPTION}: give a folder that training exported") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("parts"), dict):
        raise InputError(f"{path} lists no parts: export it again")
    if name is not None and stored.get("name") != name:
        raise InputError(f"{folder} is a checkpoint of {stored.get('name')}, not of {name}")
    return stored


def part_config(folder: str | Path, part: str, precision: Precision) -> Any:
    """Config of a part.

    Raises:
      InputError: as `description`, or if the folder lacks the part.
    """
    from rvseg_jax.convert import registry
    from rvseg_jax.convert.manifest import config_from

    stored = description(folder)
    if part not in stored["parts"] or not _weights(Path(folder), part).is_file():
        raise InputError(f"{folder} holds no {part}: train or convert it first")
    return config_from(registry.part(part).config_class(), stored["parts"][part], precision)


def load_part(folder: str | Path, part: str, precision: Precision) -> nnx.Module:
    """One part with its weights.

    Raises:
      InputError: as `part_config`, or if the weights do not fit.
    """
    from rvseg_jax.convert.api import from_torch
    from rvseg_jax.convert.safetensors_file import read_safetensors

    config = part_config(folder, part, precision)
    return from_torch(part, read_safetensors(_weights(Path(folder), part)), config)


def fingerprint(folder: str | Path, part: str) -> str:
    """SHA-256 of a part's weights, to tell what was made from them."""
    return hashlib.sha256(_weights(Path(folder), part).read_bytes()).hexdigest()


def _weights(folder: Path, part: str) -> Path:
    return folder / f"{part}.safetensors"
