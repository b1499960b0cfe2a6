"""Compares a converted checkpoint with its manifest and with the torch files that it was made from."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from rvseg_jax.convert import registry, store
from rvseg_jax.convert.converter import Opened, Source, kept_name, kept_tensors, open_source, stored_leaf
from rvseg_jax.convert.manifest import LeafRecord, PartRecord, file_record, leaf_record, read_manifest, table_hash
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.safetensors_file import read_safetensors

BATCH_BYTES = 256 * 2**20
BLOCK_BYTES = 2**22


def verify(
    folder: epath.PathLike,
    sources: Mapping[str, Source] | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Reads every leaf again and says what is not as it should be, with one leaf a side in memory at a time.

    Args:
      folder: the converted checkpoint.
      sources: {part name: source} to compare with; parts without one are held against the manifest alone.
      report: gets a line before each part.

    Returns:
      One line for each difference; none if all is well.

    Raises:
      ConversionError: if the folder is no converted checkpoint, or a source cannot be read.
    """
    folder = epath.Path(folder)
    manifest = read_manifest(folder)
    problems = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.exists() or file_record(Path(path))["sha256"] != digest:
            problems.append(f"{name} is not the file that was converted")
    for name in sources or {}:
        store.part_record(folder, manifest, name)
    for name, record in manifest.parts.items():
        report(f"{name}: {len(record.leaves)} leaves")
        opened = None
        if sources and name in sources:
            opened, differences = _open(name, record, sources[name])
            problems += differences
        problems += _compare(folder, name, record, opened)
    return problems


def _open(name: str, record: PartRecord, source: Source) -> tuple[Opened, list[str]]:
    """The source with the stored configuration, and how its files differ from those that were converted."""
    part = registry.part(name)
    wanted = Source(source.paths, record.weights, store.stored_config(part, record))
    opened = open_source(part, wanted, record.dtype)
    files = [file_record(file) for file in opened.checkpoint.files]
    problems: list[str] = []
    if sorted(file["sha256"] for file in files) != sorted(file["sha256"] for file in record.sources):
        named = ", ".join(file["name"] for file in record.sources)
        problems.append(f"{name}: the files given are not those that were converted ({named})")
    if table_hash(part.table(opened.fit.config, record.layout)) != record.table:
        problems.append(f"{name}: the conversion table has changed since")
    return opened, problems


def _compare(folder: epath.Path, name: str, record: PartRecord, opened: Opened | None) -> list[str]:
    problems: list[str] = []
    for leaves in _batches(record):
        try:
            stored = store.read_leaves(folder, name, leaves)
        except ConversionError as error:
            return [*problems, f"{name}: {leaves[0]}: {error}"]
        for leaf in leaves:
            if not _same(leaf_record(stored[leaf]), record.leaves[leaf]):
                problems.append(f"{name}: {leaf} is not what the manifest says")
            if opened is not None and not _equal(stored[leaf], stored_leaf(opened.fit, leaf)):
                problems.append(f"{name}: {leaf} differs from the torch file")
    if opened is not None:
        problems += _compare_kept(folder, name, opened)
    return problems


def _batches(record: PartRecord) -> list[list[str]]:
    """Leaves to read together: a large one alone, small ones up to `BATCH_BYTES`, as each read has a start-up."""
    batches: list[list[str]] = []
    room = 0
    for leaf, entry in record.leaves.items():
        size = math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
        if size > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(leaf)
        room -= size
    return batches


def _compare_kept(folder: epath.Path, name: str, opened: Opened) -> list[str]:
    wanted = kept_tensors(opened.fit)
    path = folder / kept_name(name)
    stored = read_safetensors(Path(path)) if path.exists() else {}
    return [
        f"{name}: the kept tensor {key} differs from the torch file"
        for key in {**wanted, **stored}
        if key not in stored or key not in wanted or not _equal(stored[key], wanted[key])
    ]


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays agree in every bit; compared block by block, so that nothing is copied whole."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    left, right = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second))
    blocks = range(0, left.size, BLOCK_BYTES)
    return all(np.array_equal(left[at : at + BLOCK_BYTES], right[at : at + BLOCK_BYTES]) for at in blocks)


def _same(found: LeafRecord, wanted: LeafRecord) -> bool:
    """Whether records agree; sums up to the rounding of another order of summation."""
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return False
    pairs = ((found.sum, wanted.sum), (found.absmax, wanted.absmax))
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
