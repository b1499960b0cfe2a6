"""From names of dimensions to shardings.

A model keeps, beside its code, a table *path regex -> one logical axis name a dimension*; a run has `Rules`
*logical axis -> mesh axes*. Together with a mesh they give the sharding of every array.
"""

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rvseg_jax.core.tree_paths import SEPARATOR

logger = logging.getLogger(__name__)

Rules = Mapping[str, str | tuple[str, ...] | None]
Table = Sequence[tuple[str, Sequence[str | None]]]

# Weights: inputs over fsdp and outputs over tensor, and the reverse for the second product of a pair.
# Activations: the batch takes data and fsdp first, so "embed" stays whole there.
# Convolutions and the stacked axis of layers stay whole: their weights are small, and a scan slices layers.
DEFAULT_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "seq": "seq",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "conv_in": None,
    "conv_out": None,
    "layers": None,
}


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], rules: Rules, mesh: Mesh | AbstractMesh, *, where: str
) -> PartitionSpec:
    """Mesh axes of each dimension.

    A mesh axis serves the first dimension that asks for it. A dimension that its mesh axes do not divide gives
    up axes from the last one on, which is logged once; axes given up serve no other dimension of the array, so
    that the layout does not jump with the batch size.

    Args:
      names: a logical name a dimension, None for a whole one.
      where: what the array is, for errors and the log.

    Raises:
      ValueError: if names and shape differ in length, or a name is not in `rules`.
    """
    if len(names) != len(shape):
        raise ValueError(f"{where}: {len(names)} axis names {tuple(names)} for shape {tuple(shape)}")
    claimed: set[str] = set()
    spec: list[tuple[str, ...] | str | None] = []
    for name, size in zip(names, shape, strict=True):
        wanted = [axis for axis in mesh_axes(name, rules, where) if axis in mesh.shape and axis not in claimed]
        claimed.update(wanted)
        kept = list(wanted)
        while kept and size % math.prod(mesh.shape[axis] for axis in kept):
            kept.pop()
        if math.prod(mesh.shape[axis] for axis in wanted) != math.prod(mesh.shape[axis] for axis in kept):
            _log_dropped(where, name, size, tuple((axis, mesh.shape[axis]) for axis in wanted), tuple(kept))
        spec.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*spec)


def shardings(tree: Any, table: Table, rules: Rules, mesh: Mesh) -> Any:
    """Sharding of every leaf of a tree of parameters.

    Args:
      tree: nested dict of arrays or `jax.ShapeDtypeStruct`.
      table: (path regex, logical axis names) pairs; the first regex found in the path counts. Empty names
        keep a leaf of any rank whole.

    Returns:
      The same tree with a `NamedSharding` a leaf.

    Raises:
      ValueError: naming the leaf, if no regex is found in its path or the number of names is not its rank.
    """
    compiled = [(re.compile(pattern), names) for pattern, names in table]

    def leaf_sharding(keys: Any, leaf: Any) -> NamedSharding:
        path = path_of(keys)
        for pattern, names in compiled:
            if pattern.search(path):
                names = names or (None,) * len(leaf.shape)
                return NamedSharding(mesh, partition_spec(names, leaf.shape, rules, mesh, where=path))
        raise ValueError(f"no sharding rule matches {path!r} of shape {tuple(leaf.shape)}: add one to the table")

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def shardings_like(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree that carries copies of parameters inside: an optimizer state, an EMA, gradients.

    A leaf whose path ends in the path of a parameter, and whose shape is the same, gets that parameter's
    sharding; the longest such path counts. Everything else (step counters, factored moments) is replicated.

    Args:
      tree: any pytree of arrays or `jax.ShapeDtypeStruct`, such as `jax.eval_shape(optimizer.init, params)`.
      params, param_shardings: the nested dict of parameters and the tree that `shardings` gave for it.
    """
    shapes = {path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    known = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(param_shardings)}

    def leaf_sharding(keys: Any, leaf: Any) -> NamedSharding:
        parts = path_of(keys).split(SEPARATOR)
        for start in range(len(parts)):
            path = SEPARATOR.join(parts[start:])
            if path in known and shapes[path] == leaf.shape:
                return known[path]
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def prefixed(table: Table, prefix: str) -> Table:
    """A model's table for its parameters under `prefix`, as a system that composes several models needs it.

    Patterns that are anchored at the beginning of a path stay so.
    """
    return tuple(
        (f"^{prefix}/{pattern[1:]}" if pattern.startswith("^") else f"^{prefix}(?=/).*{pattern}", tuple(names))
        for pattern, names in table
    )


def batch_shardings(batch: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """Shardings of a batch: the first axis of every leaf by the rule for "batch", the others whole.

    Args:
      batch: pytree of arrays or `jax.ShapeDtypeStruct` with their global shapes.

    Raises:
      ValueError: if a leaf's first axis is not a multiple of the number of parts; a batch is never left whole
        silently, as that would make every device do all the work.
    """
    axes = tuple(axis for axis in mesh_axes("batch", rules, "batch") if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)

    def leaf_sharding(keys: Any, leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        if leaf.shape[0] % parts:
            sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ValueError(
                f"batch field {path_of(keys)!r} has {leaf.shape[0]} samples for {parts} parts ({sizes}): "
                f"make the batch size a multiple of {parts}"
            )
        return NamedSharding(mesh, PartitionSpec(axes))

    return jax.tree_util.tree_map_with_path(leaf_sharding, batch)


def path_of(keys: Any) -> str:
    """The "/"-joined path of a leaf as JAX's tree functions give it."""
    return jax.tree_util.keystr(keys, simple=True, separator=SEPARATOR)


def mesh_axes(name: str | None, rules: Rules, where: str) -> tuple[str, ...]:
    """The mesh axes that `rules` give to the logical axis `name`; `where` is for the error of an unknown one."""
    if name is None:
        return ()
    if name not in rules:
        raise ValueError(f"{where}: no rule for the logical axis {name!r}; the rules know {', '.join(rules)}")
    axes = rules[name]
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


@functools.cache
def _log_dropped(where: str, name: str, size: int, wanted: tuple[tuple[str, int], ...], kept: tuple[str, ...]) -> None:
    asked = " x ".join(f"{axis}={count}" for axis, count in wanted)
    logger.warning("%s: %s of %d does not divide by %s; sharded over %s", where, name, size, asked, kept or "nothing")
