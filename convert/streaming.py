"""Parts that do not fit into memory whole: some rows of a leaf, or the stacked blocks one layer at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from rvseg_jax.convert import engine, registry, store
from rvseg_jax.convert.manifest import read_manifest
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.rules import Shape
from rvseg_jax.core import tree_paths

ROWS_AT_ONCE = 8  # each row may lie in a stored chunk of its own, and chunks are read whole


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """A part of a converted checkpoint, of which nothing has been read yet.

    Attributes:
      path: the part's Orbax item.
      shapes: {leaf path: shape}.
    """

    path: epath.Path
    shapes: Mapping[str, Shape]

    def leaf(self, leaf: str) -> np.ndarray:
        """One leaf, in its stored number format."""
        return self._read(leaf, [...])

    def rows(self, leaf: str) -> "StoredRows":
        """A leaf of which `rows[indices]` reads the rows asked for."""
        return StoredRows(self, leaf)

    def layers(self, stack: str = "blocks") -> Iterator[dict[str, Any]]:
        """Parameters of layer 0, 1, ... of a stacked module, each read when it is asked for.

        Returns:
          Nested dicts of numpy arrays, without the leading layer axis.

        Raises:
          ConversionError: if the part has no stacked module of that name.
        """
        return _layers(self.shapes, stack, lambda leaf, layer: self._read(leaf, [layer]))

    def _read(self, leaf: str, pieces: list[Any]) -> np.ndarray:
        """`leaf[piece]` of each piece, one after the other; several are joined along the first axis."""
        if leaf not in self.shapes:
            raise ConversionError(f"{self.path}: has no leaf {leaf!r}")
        # Orbax stores a leaf as a zarr array of this name in one OCDBT database a part.
        kvstore = {"driver": "ocdbt", "base": self.path.as_uri(), "path": leaf.replace(tree_paths.SEPARATOR, ".")}
        try:
            array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, read=True).result()
            read = [np.asarray(array[piece].read().result()) for piece in pieces]
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ConversionError(f"{self.path}: cannot read {leaf} ({reason}); convert again") from error
        return read[0] if len(read) == 1 else np.concatenate(read)


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """Rows of a stored leaf; a few are read at a time, as each may cost a chunk of the file."""

    part: StoredPart
    leaf: str

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Shapes: rows int [R], R at least 1 -> [R, ...]."""
        starts = range(0, len(rows), ROWS_AT_ONCE)
        return self.part._read(self.leaf, [np.asarray(rows[start : start + ROWS_AT_ONCE]) for start in starts])


def open_part(folder: epath.PathLike, name: str) -> StoredPart:
    """A part of a converted checkpoint, to be read in pieces.

    Raises:
      ConversionError: if the folder is no converted checkpoint, lacks the part, or was made by another version.
    """
    folder = epath.Path(folder)
    part = registry.part(name)
    record = store.part_record(folder, read_manifest(folder), name)
    shapes = engine.plan_for(part, store.stored_config(part, record))[1].shapes
    store.check_leaves(folder, name, record, shapes)
    return StoredPart(folder.resolve() / name, shapes)


def layer_states(
    name: str, tensors: Mapping[str, np.ndarray], config: Any, *, stack: str = "blocks"
) -> Iterator[dict[str, Any]]:
    """`StoredPart.layers` straight from torch tensors, without converting the checkpoint first.

    Args:
      name: the part, for example "umt5".
      tensors: {torch key: array}, the whole checkpoint, memory-mapped where it is large.
      config: the part's configuration; its precision sets the number format.
      stack: path of the stacked module.

    Raises:
      ConversionError: if keys or shapes do not fit, or there is no such stack; before a layer is read.
    """
    plan, model = engine.plan_for(registry.part(name), config)
    match = plan.match({key: array.shape for key, array in tensors.items()})

    def read(leaf: str, layer: int) -> np.ndarray:
        cut = (slice(layer, layer + 1), *(slice(None) for _ in plan.leaf_shapes[leaf][1:]))
        return engine.leaf_slice(plan, match, tensors, leaf, model.dtypes[leaf], cut)[0]

    return _layers(model.shapes, stack, read)


def _layers(
    shapes: Mapping[str, Shape], stack: str, read: Callable[[str, int], np.ndarray]
) -> Iterator[dict[str, Any]]:
    prefix = stack + tree_paths.SEPARATOR
    leaves = [leaf for leaf in shapes if leaf.startswith(prefix)]
    if not leaves:
        raise ConversionError(f"the model has no stacked module {stack!r}")
    # A generator expression: each layer is let go of before the next one is read.
    return (
        tree_paths.unflatten({leaf.removeprefix(prefix): read(leaf, layer) for leaf in leaves})
        for layer in range(shapes[leaves[0]][0])
    )
