"""Writes a converted checkpoint from torch files: everything is checked first, then written, then named."""

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from rvseg_jax.convert import engine, registry, store, tokenizer_files
from rvseg_jax.convert.fit import Fit, fit
from rvseg_jax.convert.manifest import (
    LeafRecord,
    Manifest,
    PartRecord,
    config_fields,
    file_record,
    leaf_record,
    table_hash,
    write_manifest,
)
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import Checkpoint, Weights, open_checkpoint
from rvseg_jax.core.precision import BFLOAT16, FLOAT32

DTYPES = ("source", "float32", "bfloat16")
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Source:
    """Where the weights of a part come from.

    Attributes:
      paths: weight files, or a folder.
      weights: which parameters of a training checkpoint to take.
      config: the part's configuration, if `config.json` and the published sizes do not say it.
    """

    paths: tuple[Path, ...]
    weights: Weights = "auto"
    config: Any = None


@dataclass(frozen=True)
class Opened:
    """A source that fits its part."""

    part: registry.Part
    checkpoint: Checkpoint
    fit: Fit


def convert(
    sources: Mapping[str, Source],
    out: epath.PathLike,
    *,
    system: str | None = None,
    dtype: str = "source",
    tokenizer: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Writes the parts into a new folder, one leaf in memory at a time.

    The folder appears under its name only when it is complete.

    Args:
      sources: {part name: source}.
      out: the folder; it must not exist.
      system: the system that the parts make up, if they do.
      dtype: number format of stored parameters: "float32", "bfloat16", or that of the source.
      tokenizer: file or folder of a tokenizer, see `tokenizer_files`, to lie beside the parts as `tokenizer.json`.
      report: gets a line before each step.

    Raises:
      ConversionError: if anything does not fit, cannot be read, or cannot be written; no folder is left.
    """
    out = epath.Path(out)
    if out.exists():
        raise ConversionError(f"{out}: exists already; name a folder that does not")
    if tokenizer is not None and not tokenizer.exists():
        raise ConversionError(f"{tokenizer}: no such file; give the tokenizer.json of the text encoder")
    words = None if tokenizer is None else tokenizer_files.read(tokenizer)
    opened = [open_source(registry.part(name), source, dtype) for name, source in sources.items()]
    _check_space(out, opened)
    with _new_folder(out) as folder:
        parts = {one.part.name: _write_part(folder, one, report) for one in opened}
        files = {}
        if words is not None:
            (folder / tokenizer_files.TOKENIZER).write_bytes(words)
            files[tokenizer_files.TOKENIZER] = hashlib.sha256(words).hexdigest()
        manifest = Manifest(system, parts, files)
        write_manifest(folder, manifest)
    return manifest


def open_source(part: registry.Part, source: Source, dtype: str) -> Opened:
    """Opens the files of a part and finds the configuration that they fit; reads no weights."""
    checkpoint = open_checkpoint(source.paths, weights=source.weights, prefixes=part.prefixes)
    found = fit(part, checkpoint, source.config)
    precision = BFLOAT16 if (_source_dtype(found) if dtype == "source" else dtype) == "bfloat16" else FLOAT32
    return Opened(part, checkpoint, fit(part, checkpoint, found.config, precision=precision))


def stored_leaf(found: Fit, leaf: str) -> np.ndarray:
    """A leaf as it is stored, made from the torch tensors."""
    whole = tuple(slice(None) for _ in found.plan.leaf_shapes[leaf])
    dtype = found.skeleton.dtypes[leaf]
    return engine.leaf_slice(found.plan, found.match, found.tensors, leaf, dtype, whole)


def kept_tensors(found: Fit) -> dict[str, np.ndarray]:
    """Torch tensors that no leaf takes and `export` writes back."""
    return {key: np.array(found.tensors[key]) for key, drop in found.match.dropped.items() if drop.keep}


def kept_name(part: str) -> str:
    """Name of the file with the kept tensors of a part."""
    return f"{part}.kept.safetensors"


def _source_dtype(found: Fit) -> str:
    """The number format of most parameters: bfloat16, or else float32."""
    sizes: Counter[str] = Counter()
    for key in found.match.stored.values():
        sizes[str(found.tensors[key].dtype)] += found.tensors[key].nbytes
    return sizes.most_common(1)[0][0]


def _write_part(folder: epath.Path, opened: Opened, report: Callable[[str], None]) -> PartRecord:
    part, checkpoint, found = opened.part, opened.checkpoint, opened.fit
    report(f"{part.name}: hashing {', '.join(file.name for file in checkpoint.files)}")
    sources = tuple(file_record(file) for file in checkpoint.files)
    engine.check_repeats(found.tensors, found.match)
    records: dict[str, LeafRecord] = {}

    def make(leaf: str) -> np.ndarray:
        report(f"{part.name}: {len(records) + 1}/{len(found.plan.leaf_shapes)} {leaf}")
        array = stored_leaf(found, leaf)
        records[leaf] = leaf_record(array)
        return array

    dtypes = found.skeleton.dtypes
    leaves = {
        leaf: store.LazyLeaf(shape, dtypes[leaf], partial(make, leaf)) for leaf, shape in found.plan.leaf_shapes.items()
    }
    store.write_part(folder, part.name, leaves)
    kept = kept_tensors(found)
    if kept:
        save_file(kept, folder / kept_name(part.name))
    return PartRecord(
        config=config_fields(found.config),
        dtype=str(np.dtype(found.config.precision.param_dtype)),
        licence=part.licence,
        table=table_hash(part.table(found.config, found.layout)),
        sources=sources,
        prefix=checkpoint.prefix,
        weights="model" if checkpoint.shadow is None else "ema",
        keys={
            key: str(array.dtype)
            for key, array in found.tensors.items()
            if key not in found.match.dropped or found.match.dropped[key].keep
        },
        aliases=_aliases(found),
        dropped={key: drop.reason for key, drop in found.match.dropped.items() if not drop.keep},
        leaves={leaf: records[leaf] for leaf in leaves},
        layout=found.layout,
    )


def _aliases(found: Fit) -> dict[str, str]:
    alone = {stored: key for key, stored in found.match.stored.items() if stored != key}
    return {**found.match.repeats, **alone}


def _check_space(out: epath.Path, opened: Sequence[Opened]) -> None:
    """Raises before anything is written if a local disk has no room for all leaves."""
    parent = next((path for path in Path(os.fspath(out)).absolute().parents if path.is_dir()), None)
    if "://" in os.fspath(out) or parent is None:
        return
    needed = SPARE_BYTES + sum(
        int(np.prod(shape)) * one.fit.skeleton.dtypes[leaf].itemsize
        for one in opened
        for leaf, shape in one.fit.plan.leaf_shapes.items()
    )
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ConversionError(
            f"{out}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; choose another one"
        )


@contextmanager
def _new_folder(out: epath.Path) -> Iterator[epath.Path]:
    """A folder under a temporary name, which takes its own when the block ends well and is removed otherwise."""
    partial_folder = out.parent / f"{out.name}.partial-{os.getpid()}"
    try:
        partial_folder.mkdir(parents=True)
        yield partial_folder
        partial_folder.rename(out)
    except BaseException as error:
        if partial_folder.exists():
            partial_folder.rmtree()
        if is_disk_full(error):
            raise ConversionError(f"{out}: the disk is full; nothing was kept, choose another one") from error
        if isinstance(error, OSError) and not isinstance(error, ConversionError):
            raise ConversionError(f"{out}: cannot be written ({error}); nothing was kept") from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk is full or a quota used up; tensorstore reports that by its text alone."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error) or "quota exceeded" in str(error)
