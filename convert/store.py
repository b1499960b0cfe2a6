"""Converted checkpoints on disk: one Orbax item a part, written and read leaf by leaf.

<folder>/manifest.json              written last; without it the folder is no checkpoint
<folder>/<part>/                    Orbax item, a tree of the part's leaves
<folder>/<part>.kept.safetensors    torch tensors that no leaf takes but `export` writes back
<folder>/tokenizer.json
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from rvseg_jax.convert import engine, registry
from rvseg_jax.convert.manifest import Manifest, PartRecord, config_from, read_manifest
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.rules import Shape
from rvseg_jax.core import precision as precisions
from rvseg_jax.core import tree_paths

CHUNK_BYTES = 8 * 2**20  # of a stored array: what is read at least of a leaf that is sharded or read in pieces
FILE_BYTES = 256 * 2**20  # of a data file; the writer gathers one in memory
GIGABYTE = 10**9


@dataclasses.dataclass(frozen=True)
class LazyLeaf:
    """A leaf that is made when it is written.

    Attributes:
      make: returns the array, which is let go of once it is on disk.
    """

    shape: Shape
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize


class LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Tells Orbax to make and write lazy leaves one after the other, as if they were numpy arrays."""

    async def serialize(
        self,
        values: Sequence[LazyLeaf],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        """Writes every leaf to its end before the next one is made."""
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for write in await super().serialize([value.make()], [info], [arg]):
                write.result()
        return []


def write_part(folder: epath.Path, name: str, leaves: Mapping[str, LazyLeaf]) -> None:
    """Writes the Orbax item of a part, holding one leaf in memory at a time."""
    handlers = ocp.type_handlers.create_type_handler_registry(
        (LazyLeaf, LazyLeafHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # unused; Orbax warns if it is not there
    )
    # Weights are noise to a compressor: it takes minutes and saves a few percent.
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers, use_compression=False)
    options = {leaf: _save_options(value) for leaf, value in leaves.items()}
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder.resolve() / name,  # Orbax takes absolute paths only
            args=ocp.args.PyTreeSave(
                tree_paths.unflatten(leaves),
                save_args=tree_paths.unflatten(options),
                ocdbt_target_data_file_size=FILE_BYTES,
            ),
        )


def _save_options(leaf: LazyLeaf) -> ocp.SaveArgs:
    # A large leaf of three or more axes is a stack of layers: cut between layers first, or reading one layer
    # would read the chunks of all.
    stacked = leaf.ndim > 2 and leaf.nbytes > CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


def read_leaves(folder: epath.Path, name: str, leaves: Iterable[str]) -> dict[str, np.ndarray]:
    """Some leaves of a stored part as numpy arrays in their stored number format.

    Raises:
      ConversionError: if they cannot be read.
    """
    return _restore(folder / name, {leaf: ocp.RestoreArgs(restore_type=np.ndarray) for leaf in leaves}, 0)


def load_part(
    folder: epath.PathLike,
    name: str,
    *,
    mesh: jax.sharding.Mesh | None = None,
    precision: Any = None,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> nnx.Module:
    """A part of a converted checkpoint, each leaf read straight onto its devices.

    Args:
      folder: made by `rvseg convert`.
      name: the part.
      mesh: where the leaves go, by the model's sharding rules; without it they go to the first device.
      precision: a `Precision` or its name; by default parameters and computation are in the stored format.
      shardings: {leaf path: sharding} in place of the rules.

    Raises:
      ConversionError: if the folder is no converted checkpoint, lacks the part, or is damaged.
    """
    folder = epath.Path(folder)
    part = registry.part(name)
    record = part_record(folder, read_manifest(folder), name)
    model = engine.skeleton(part, stored_config(part, record, precision))
    check_leaves(folder, name, record, model.shapes)
    if shardings is None:
        shardings = engine.placements(part, model.shapes, mesh)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arguments = {
        leaf: ocp.ArrayRestoreArgs(
            dtype=dtype,
            global_shape=model.shapes[leaf],
            sharding=single if shardings is None else shardings[leaf],
            strict=True,
        )
        for leaf, dtype in model.dtypes.items()
    }
    largest = max(4 * int(np.prod(shape)) for shape in model.shapes.values())
    return model.module(_restore(folder / name, arguments, largest))


def part_record(folder: epath.Path, manifest: Manifest, name: str) -> PartRecord:
    """The record of a part; raises `ConversionError` if the checkpoint does not hold it."""
    if name not in manifest.parts:
        what = f"a checkpoint of {manifest.system}" if manifest.system else "a checkpoint"
        raise ConversionError(
            f"{folder}: {what} that holds {', '.join(manifest.parts)}, not {name}; give a folder that does"
        )
    return manifest.parts[name]


def check_system(folder: epath.PathLike, system: str) -> Manifest:
    """The manifest of a checkpoint of `system`.

    Raises:
      ConversionError: if it is the checkpoint of another system, or lacks a part of this one.
    """
    folder = epath.Path(folder)
    manifest = read_manifest(folder)
    if manifest.system not in (None, system):
        raise ConversionError(
            f"{folder}: a checkpoint of {manifest.system}, not of {system}; run it with --system {manifest.system}"
        )
    for name in registry.SYSTEMS[system]:
        part_record(folder, manifest, name)
    return manifest


def stored_config(part: registry.Part, record: PartRecord, precision: Any = None) -> Any:
    """The configuration of a stored part, with the precision asked for or that of its number format."""
    if precision is None:
        precision = precisions.BFLOAT16 if record.dtype == "bfloat16" else precisions.FLOAT32
    elif isinstance(precision, str):
        precision = precisions.by_name(precision)
    return config_from(part.config_class(), record.config, precision)


def check_leaves(folder: epath.Path, name: str, record: PartRecord, shapes: Mapping[str, Shape]) -> None:
    """Raises `ConversionError` if the stored leaves are not those of the model."""
    stored = {leaf: entry.shape for leaf, entry in record.leaves.items()}
    odd = [leaf for leaf in {**stored, **shapes} if stored.get(leaf) != shapes.get(leaf)]
    if odd:
        raise ConversionError(
            f"{folder}: {len(odd)} leaves of {name} differ from the model's ({odd[0]} is {stored.get(odd[0])}, "
            f"the model has {shapes.get(odd[0])}); it was made by another version, convert again"
        )


def _restore(path: epath.Path, arguments: Mapping[str, Any], largest: int) -> dict[str, Any]:
    # Orbax reads many leaves at once; on a host whose devices are its own memory that would double the model.
    limit = 1 + largest // GIGABYTE if largest else None
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit)
    tree = tree_paths.unflatten({leaf: 0 for leaf in arguments})
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            restored = checkpointer.restore(
                path.resolve(),
                args=ocp.args.PyTreeRestore(tree, restore_args=tree_paths.unflatten(arguments), partial_restore=True),
            )
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged item
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ConversionError(f"{path}: cannot be read ({type(error).__name__}: {reason}); convert again") from error
    return tree_paths.flatten(restored)
