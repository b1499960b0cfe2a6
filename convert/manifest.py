"""The manifest of a converted checkpoint: what it holds, from which files, and sums that tell if it is whole.

A folder without `manifest.json` is no checkpoint: the manifest is written last.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.rules import Table

NAME = "manifest.json"
FORMAT = "rvseg_jax checkpoint"
VERSION = 1
BLOCK = 2**24  # bytes of a file that are hashed at once
SUM_BLOCK = 2**20  # entries of a leaf that are summed at once


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """What a leaf was when it was written: float64 sum and largest magnitude tell a damaged one."""

    shape: tuple[int, ...]
    dtype: str
    sum: float
    absmax: float


@dataclasses.dataclass(frozen=True)
class PartRecord:
    """One part of a converted checkpoint.

    Attributes:
      config: fields of the part's config, without its precision.
      dtype: number format of its parameters.
      licence: licence of the weights.
      table: hash of the conversion table that was used.
      sources: name, bytes and sha256 of each file that was read.
      prefix: what stood in front of all torch keys.
      weights: "model" or "ema".
      keys: {torch key: number format in the source} of everything that `export` writes, aliases too.
      aliases: {torch key: key that it repeats}.
      dropped: {torch key: reason}, recomputed by the model and not exported.
      leaves: {leaf path: record}.
      layout: which of the part's key layouts the source had, "" for the original's.
    """

    config: Mapping[str, Any]
    dtype: str
    licence: str
    table: str
    sources: tuple[Mapping[str, Any], ...]
    prefix: str
    weights: str
    keys: Mapping[str, str]
    aliases: Mapping[str, str]
    dropped: Mapping[str, str]
    leaves: Mapping[str, LeafRecord]
    layout: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All parts of a converted checkpoint.

    Attributes:
      system: the system that it makes up, or None for parts alone.
      parts: {part name: record}.
      files: {name: sha256} of other files beside it, such as `tokenizer.json`.
    """

    system: str | None
    parts: Mapping[str, PartRecord]
    files: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest under a temporary name first, so that it is there whole or not at all."""
    temporary = folder / f"{NAME}.partial"
    temporary.write_text(json.dumps(manifest.to_json(), indent=1) + "\n")
    temporary.replace(folder / NAME)


def read_manifest(folder: epath.Path | Path | str) -> Manifest:
    """The manifest of a converted checkpoint.

    Raises:
      ConversionError: if the folder is no converted checkpoint, or is of a newer format.
    """
    folder = epath.Path(folder)
    path = folder / NAME
    if not path.exists():
        cure = "make one with `rvseg convert`" if folder.exists() else "no such folder"
        raise ConversionError(f"{folder}: no converted checkpoint (it has no {NAME}); {cure}")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ConversionError(
                f"{path}: format {content['format']!r} version {content['version']} is not known here; "
                f"update rvseg_jax or convert again"
            )
        return Manifest(
            system=content["system"],
            parts={name: _part_record(fields) for name, fields in content["parts"].items()},
            files=dict(content["files"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path}: damaged ({type(error).__name__}: {error}); convert again") from None


def _part_record(fields: Mapping[str, Any]) -> PartRecord:
    leaves = {path: LeafRecord(**{**leaf, "shape": tuple(leaf["shape"])}) for path, leaf in fields["leaves"].items()}
    return PartRecord(**{**fields, "sources": tuple(fields["sources"]), "leaves": leaves})


def config_fields(config: Any) -> dict[str, Any]:
    """Fields of a config as JSON values, without its precision; a config within it is an object of its own."""

    def value(entry: Any) -> Any:
        return config_fields(entry) if dataclasses.is_dataclass(entry) else _lists(entry)

    names = [field.name for field in dataclasses.fields(config) if field.name != "precision"]
    return {name: value(getattr(config, name)) for name in names}


def config_from(cls: type, fields: Mapping[str, Any], precision: Any) -> Any:
    """The config with these fields; lists become tuples, and objects the configs that the class says.

    Raises:
      ConversionError: for a field that the config class does not have.
    """
    return cls(**_config_values(cls, fields), precision=precision)


def _config_values(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise ConversionError(f"{cls.__name__} has no field {unknown[0]!r}: it has {', '.join(sorted(hints))}")
    values = {}
    for name, value in fields.items():
        nested = dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        values[name] = hints[name](**_config_values(hints[name], value)) if nested else _tuples(value)
    return values


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def table_hash(table: Table) -> str:
    """Hash of all rules of a table, independent of their order."""
    return hashlib.sha256("\n".join(sorted(map(repr, table.entries))).encode()).hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def leaf_record(array: np.ndarray) -> LeafRecord:
    """Shape, number format, sum and largest magnitude of a leaf; sums run in float64, block by block."""
    total, largest = 0.0, 0.0
    flat = array.reshape(-1)
    for start in range(0, flat.size, SUM_BLOCK):
        block = flat[start : start + SUM_BLOCK].astype(np.float64)
        total += float(block.sum())
        largest = max(largest, float(np.abs(block).max()))
    return LeafRecord(tuple(array.shape), str(array.dtype), total, largest)
