"""Writes the parts of a converted checkpoint back in torch layout, as safetensors."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath

from rvseg_jax.convert import engine, registry, store
from rvseg_jax.convert.converter import is_disk_full, kept_name
from rvseg_jax.convert.manifest import PartRecord, read_manifest
from rvseg_jax.convert.plan import ConversionError, Move, Plan
from rvseg_jax.convert.safetensors_file import DTYPES, read_safetensors

FORMAT_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file that is being written; `begin` counts from the end of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """First byte behind the tensor."""
        return self.begin + math.prod(self.shape) * self.dtype.itemsize


def export(
    folder: epath.PathLike, name: str, out: Path, *, report: Callable[[str], None] = lambda line: None
) -> PartRecord:
    """Writes one part as a safetensors file under upstream's keys, the leaves of one rule in memory at a time.

    Tensors have the number format of the source, and are equal to it bit by bit, unless the checkpoint is
    stored in a narrower one: then they have that.

    Args:
      folder: the converted checkpoint.
      out: the file; it must not exist.

    Raises:
      ConversionError: if the folder does not hold the part, or the file cannot be written.
    """
    folder = epath.Path(folder)
    part = registry.part(name)
    record = store.part_record(folder, read_manifest(folder), name)
    if out.exists():
        raise ConversionError(f"{out}: exists already; name a file that does not")
    plan, model = engine.plan_for(part, store.stored_config(part, record), record.layout)
    store.check_leaves(folder, name, record, model.shapes)
    kept_file = folder / kept_name(name)
    kept = dict(read_safetensors(Path(kept_file))) if kept_file.exists() else {}
    layout = _layout(plan, record, kept)
    temporary = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        _write(temporary, layout, _tensors(folder, name, plan, record, kept, report))
        temporary.rename(out)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else str(error)
        raise ConversionError(f"{out}: cannot be written ({reason}); nothing was kept") from error
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _names(record: PartRecord, key: str) -> list[str]:
    """The names under which the source held the tensor that the plan calls `key`."""
    return [name for name in (key, *(a for a, of in record.aliases.items() if of == key)) if name in record.keys]


def _layout(plan: Plan, record: PartRecord, kept: Mapping[str, np.ndarray]) -> dict[str, Entry]:
    """Where each tensor lies in the file; wide number formats first, so that every tensor is aligned."""
    shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for move in plan.moves:
        stored = np.dtype(record.leaves[move.leaves[0]].dtype)
        for key, shape in zip(move.keys, move.key_shapes, strict=True):
            for name in _names(record, key):
                source = np.dtype(record.keys[name])
                dtype = source if source.itemsize < stored.itemsize else stored
                shapes[record.prefix + name] = (dtype, shape)
    for key, array in kept.items():
        shapes[record.prefix + key] = (array.dtype, array.shape)
    layout, begin = {}, 0
    for key in sorted(shapes, key=lambda key: (-shapes[key][0].itemsize, key)):
        layout[key] = Entry(*shapes[key], begin)
        begin = layout[key].end
    return layout


def _tensors(
    folder: epath.Path,
    name: str,
    plan: Plan,
    record: PartRecord,
    kept: Mapping[str, np.ndarray],
    report: Callable[[str], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of the part, grouped so that the leaves of one rule are read once."""
    groups: dict[tuple[str, ...], list[Move]] = {}
    for move in plan.moves:
        groups.setdefault(move.leaves, []).append(move)
    for paths, moves in groups.items():
        report(f"{name}: {', '.join(paths)}")
        leaves = store.read_leaves(folder, name, paths)
        for move in moves:
            arrays = move.to_keys([leaves[path][move.row] for path in paths])
            for key, array in zip(move.keys, arrays, strict=True):
                for alias in _names(record, key):
                    yield record.prefix + alias, array
    for key, array in kept.items():
        yield record.prefix + key, array


def _write(path: Path, layout: Mapping[str, Entry], tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    header = {
        key: {
            "dtype": FORMAT_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
        for key, entry in layout.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, array in tensors:
            file.seek(8 + len(text) + layout[key].begin)
            file.write(np.ascontiguousarray(array, layout[key].dtype).view(np.uint8).reshape(-1).data)
