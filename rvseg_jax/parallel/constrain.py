"""Sharding of activations by the names of their dimensions."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import AxisType

from rvseg_jax.parallel.rules import DEFAULT_RULES, Rules, partition_spec

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=DEFAULT_RULES)


@contextlib.contextmanager
def use_rules(rules: Rules) -> Iterator[None]:
    """Lets `constrain` resolve names through `rules`.

    The rules count while a function is traced: enter before the first call of a jitted function, and jit it
    anew for other rules.
    """
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def current_rules() -> Rules:
    """The rules in use: of the innermost `use_rules`, else `DEFAULT_RULES`."""
    return _rules.get()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out over the mesh in use as the rules say for its dimensions; `x` itself without a mesh.

    Args:
      names: a logical axis name a dimension, such as "batch", "seq", "embed"; None for a whole dimension.

    Raises:
      ValueError: if there is not one name a dimension, or the rules do not know a name.
    """
    if len(names) != x.ndim:
        raise ValueError(f"constrain: {len(names)} axis names {names} for shape {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = partition_spec(names, x.shape, automatic_rules(), mesh, where="activation")
    return jax.lax.with_sharding_constraint(x, spec)


def automatic_axes() -> frozenset[str]:
    """Axes of the mesh in use that the compiler shards over; inside `jax.shard_map` the manual ones are cut already."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return frozenset(axis for axis, kind in kinds if kind == AxisType.Auto)


def automatic_rules() -> Rules:
    """The rules in use, without the mesh axes that cannot be asked for here."""
    return {name: _only(axes, automatic_axes()) for name, axes in current_rules().items()}


def _only(axes: str | tuple[str, ...] | None, allowed: frozenset[str]) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if axis in allowed)
