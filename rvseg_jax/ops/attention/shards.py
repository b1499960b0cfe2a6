"""Runs a kernel on each device's part of a call: hand-written kernels are opaque to XLA's partitioner."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from rvseg_jax.parallel.constrain import automatic_axes, automatic_rules
from rvseg_jax.parallel.rules import mesh_axes, partition_spec

_WHERE = "attention"

Axes = dict[str | None, Any]
"""Mesh axes, as in a `PartitionSpec`, by the name of a dimension."""


def seq_axis() -> tuple[str, int]:
    """(name, size) of the automatic mesh axis that cuts the tokens; ("", 1) where none does."""
    axes = mesh_axes("seq", automatic_rules(), _WHERE)
    mesh = jax.sharding.get_abstract_mesh()
    cutting = [axis for axis in axes if axis in mesh.shape and mesh.shape[axis] > 1]
    return (cutting[0], mesh.shape[cutting[0]]) if len(cutting) == 1 else ("", 1)


def layout(q: Any, k: Any, *, queries: bool, keys: bool) -> Axes:
    """Mesh axes of the dimensions "batch", "queries", "keys", "heads" of a call over the mesh in use.

    Samples and heads are cut where they divide; heads only if those of q and k are cut alike, so that every
    query head finds its key head on its own device.

    Args:
      q, k: arrays [B, Tq, N, H] and [B, Tk, K, H].
      queries, keys: whether tokens may be cut.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), automatic_rules()
    q_spec = partition_spec(("batch", "seq" if queries else None, "heads", None), q.shape, rules, mesh, where=_WHERE)
    k_spec = partition_spec(("batch", "seq" if keys else None, "kv_heads", None), k.shape, rules, mesh, where=_WHERE)
    heads = q_spec[2] if q_spec[2] == k_spec[2] else None
    return {"batch": q_spec[0], "queries": q_spec[1], "keys": k_spec[1], "heads": heads, None: None}


Q, KV = ("batch", "queries", "heads", None), ("batch", "keys", "heads", None)


def on_shards(
    local: Callable[..., Any],
    arrays: Sequence[Any],
    names: Sequence[Any],
    results: Any,
    axes: Axes,
) -> Any:
    """`local(*arrays)` on each device's part, or on the whole without a mesh.

    Args:
      arrays, names: pytrees, and for each the names of its dimensions in `axes`, or a tree of such tuples.
      results: the same for what `local` returns.
      axes: from `layout`.
    """
    automatic = automatic_axes()
    mesh = jax.sharding.get_abstract_mesh()
    if not any(mesh.shape[axis] > 1 for axis in automatic):
        return local(*arrays)

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda of: PartitionSpec(*(axes[name] for name in of)), tree, is_leaf=_is_names)

    mapped = jax.shard_map(
        local,
        in_specs=specs(tuple(names)),
        out_specs=specs(results),
        axis_names=automatic,
        # The replication check does not know the kernels.
        check_vma=False,
    )
    return mapped(*arrays)


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)
