"""Moves tensors between torch layout and modules, one destination at a time."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax import parallel
from rvseg_jax.convert.plan import ConversionError, Match, Plan, compile_table
from rvseg_jax.convert.registry import Part
from rvseg_jax.convert.rules import Shape
from rvseg_jax.core import tree_paths

CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
      graphdef: structure of the module.
      variables: {leaf path: variable that holds a shape and dtype}.
      keys: {leaf path: path as a tuple, with the integer indices of lists}.
    """

    graphdef: Any
    variables: Mapping[str, nnx.Variable]
    keys: Mapping[str, tuple[Any, ...]]

    @property
    def shapes(self) -> dict[str, Shape]:
        """{leaf path: shape}."""
        return {path: tuple(variable.shape) for path, variable in self.variables.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """{leaf path: dtype}."""
        return {path: np.dtype(variable.dtype) for path, variable in self.variables.items()}

    def module(self, arrays: Mapping[str, Any]) -> nnx.Module:
        """The module with these arrays, or shape structs, as leaves."""
        state = [(self.keys[path], self.variables[path].replace(array)) for path, array in arrays.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(state))


def skeleton(part: Part, config: Any) -> Skeleton:
    """The model of a part with shapes and dtypes in place of weights; nothing is allocated."""
    model_class = part.model_class()
    return skeleton_of(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))


def skeleton_of(module: nnx.Module) -> Skeleton:
    """Structure, shapes and dtypes of a module."""
    graphdef, state = nnx.split(module)
    flat = list(nnx.to_flat_state(state))
    names = [tree_paths.SEPARATOR.join(map(str, path)) for path, _ in flat]
    variables = {
        name: variable.replace(jax.ShapeDtypeStruct(variable.shape, variable.dtype))
        for name, (_, variable) in zip(names, flat, strict=True)
    }
    return Skeleton(graphdef, variables, {name: path for name, (path, _) in zip(names, flat, strict=True)})


def leaves_of(module: nnx.Module) -> dict[str, Any]:
    """{leaf path: array} of a module."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {tree_paths.SEPARATOR.join(map(str, path)): variable.get_value() for path, variable in flat}


@functools.lru_cache(maxsize=16)
def plan_for(part: Part, config: Any, layout: str = "") -> tuple[Plan, Skeleton]:
    """The part's table compiled against its model; remembered, as tracing a model takes a second.

    Args:
      layout: of the keys, one of `part.layouts` or that of the original.
    """
    model = plan_for(part, config)[1] if layout else skeleton(part, config)
    return compile_table(part.table(config, layout), model.shapes), model


def check_kinds(plan: Plan, match: Match, model: Skeleton, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises `ConversionError` if whole numbers or booleans would fill a leaf of real numbers, or the reverse."""
    for leaf, dtype in model.dtypes.items():
        real = jnp.issubdtype(dtype, jnp.floating)
        for move, _ in plan.by_leaf[leaf]:
            for key in move.keys:
                found = tensors[match.stored[key]].dtype
                if bool(jnp.issubdtype(found, jnp.floating)) != bool(real):
                    raise ConversionError(f"{match.stored[key]} is {found}, but the model keeps it as {dtype}")


def placements(
    part: Part, shapes: Mapping[str, Shape], mesh: jax.sharding.Mesh | None
) -> dict[str, jax.sharding.Sharding] | None:
    """{leaf path: sharding} by the model's sharding table and the run's rules; None without a mesh."""
    if mesh is None:
        return None
    leaves = {leaf: jax.ShapeDtypeStruct(shape, jnp.float32) for leaf, shape in shapes.items()}
    return parallel.shardings(leaves, part.sharding_rules(), parallel.current_rules(), mesh)


def leaf_slice(
    plan: Plan,
    match: Match,
    tensors: Mapping[str, np.ndarray],
    leaf: str,
    dtype: Any,
    index: tuple[slice, ...],
) -> np.ndarray:
    """One piece of a leaf in a new buffer: moved, cut and cast in a single copy for each stacked entry.

    Args:
      tensors: the checkpoint, with the keys that `match` knows.
      dtype: number format of the result.
      index: a slice for each axis of the leaf.
    """
    shape = plan.leaf_shapes[leaf]
    bounds = [piece.indices(size) for piece, size in zip(index, shape, strict=True)]
    out = np.empty([stop - start for start, stop, _ in bounds], dtype)
    for move, position in plan.by_leaf[leaf]:
        depth = len(move.row)
        if any(not start <= at < stop for at, (start, stop, _) in zip(move.row, bounds, strict=False)):
            continue
        moved = move.to_leaves([tensors[match.stored[key]] for key in move.keys])[position]
        where = tuple(at - start for at, (start, _, _) in zip(move.row, bounds, strict=False))
        out[where] = moved[index[depth:]]
        release(tensors)
    return out


def device_leaf(
    plan: Plan,
    match: Match,
    tensors: Mapping[str, np.ndarray],
    leaf: str,
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """One leaf on its devices; each process reads only the pieces that its own devices hold."""
    shape = plan.leaf_shapes[leaf]
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    pieces: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        full = index if index is not None else tuple(slice(None) for _ in shape)
        name = tuple(cut.indices(size) for cut, size in zip(full, shape, strict=True))
        if name not in pieces:  # replicas on several devices ask for the same piece
            pieces[name] = leaf_slice(plan, match, tensors, leaf, dtype, full)
        return pieces[name]

    return jax.make_array_from_callback(shape, sharding, piece)


def fill(
    plan: Plan,
    match: Match,
    model: Skeleton,
    tensors: Mapping[str, np.ndarray],
    *,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> nnx.Module:
    """The model filled from torch tensors one leaf at a time, in the number formats of the skeleton.

    Args:
      tensors: {torch key: array}, memory-mapped or in memory.
      shardings: {leaf path: sharding}; without it all leaves go to the first device.

    Raises:
      ConversionError: if an alias differs from what it repeats.
    """
    check_repeats(tensors, match)
    arrays = {}
    for leaf, dtype in model.dtypes.items():
        sharding = None if shardings is None else shardings[leaf]
        arrays[leaf] = device_leaf(plan, match, tensors, leaf, dtype, sharding)
    return model.module(arrays)


def to_tensors(plan: Plan, leaves: Mapping[str, Any], *, aliases: bool = False) -> dict[str, np.ndarray]:
    """All torch tensors that the leaves of a module make up.

    Args:
      leaves: {leaf path: array}.
      aliases: whether keys that repeat another one are written too (those without placeholders).
    """
    host = {path: np.asarray(array) for path, array in leaves.items()}
    tensors: dict[str, np.ndarray] = {}
    for move in plan.moves:
        slices = [host[leaf][move.row] for leaf in move.leaves]
        tensors.update(zip(move.keys, move.to_keys(slices), strict=True))
    if aliases:
        tensors |= {alias.source: tensors[alias.of] for alias in plan.aliases if alias.of in tensors}
    return tensors


def check_repeats(tensors: Mapping[str, np.ndarray], match: Match) -> None:
    """Raises `ConversionError` if a tied weight is stored twice with different values."""
    for alias, key in match.repeats.items():
        first, second = (np.atleast_1d(tensors[name]) for name in (match.stored[key], alias))
        rows = max(1, CHUNK_BYTES // max(1, first[:1].nbytes))
        for at in range(0, len(first), rows):
            if not np.array_equal(first[at : at + rows], second[at : at + rows]):
                raise ConversionError(f"{alias} differs from {match.stored[key]}, but the model ties them")


def release(tensors: Mapping[str, np.ndarray]) -> None:
    """Lets go of file pages that a memory-mapped checkpoint has read so far; nothing for arrays in memory."""
    drop_pages = getattr(tensors, "drop_pages", None)
    if drop_pages is not None:
        drop_pages()


def with_precision(config: Any, precision: Any) -> Any:
    """`config` with another number format, given as a `Precision` or by name; None leaves it."""
    if precision is None:
        return config
    if isinstance(precision, str):
        from rvseg_jax.core.precision import by_name

        precision = by_name(precision)
    return dataclasses.replace(config, precision=precision)
