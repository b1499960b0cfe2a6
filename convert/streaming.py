"""Stacked blocks of a checkpoint one layer at a time, for models that do not fit into memory whole."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rvseg_jax.convert import engine, registry

from rvseg_jax.core import tree_paths


def layer_states(
    name: str, tensors: Mapping[str, np.ndarray], config: Any, *, stack: str = "blocks"
) -> Iterator[dict[str, Any]]:
    """Parameters of layer 0, 1, ... of a part's stacked blocks, each read when it is asked for.

    Args:
      name: the part, for example "umt5".
      tensors: {torch key: array}, the whole checkpoint, memory-mapped where it is large.
      config: the part's configuration; its precision sets the number format.
      stack: path of the stacked module.

    Returns:
      Nested dicts of numpy arrays, without the leading layer axis.

    Raises:
      ConversionError: if keys or shapes do not fit the model; before the first layer is read.
      ValueError: if the model has no stacked module of that name.
    """
    plan, model = engine.plan_for(registry.part(name), config)
    match = plan.match({key: array.shape for key, array in tensors.items()})
    prefix = stack + tree_paths.SEPARATOR
    leaves = {path: dtype for path, dtype in model.dtypes.items() if path.startswith(prefix)}
    if not leaves:
        raise ValueError(f"{name} has no stacked module {stack!r}")
    return _read(plan, match, tensors, leaves, prefix)


def _read(plan, match, tensors, leaves, prefix) -> Iterator[dict[str, Any]]:
    (count,) = {plan.leaf_shapes[leaf][0] for leaf in leaves}
    for layer in range(count):
        state = {}
        for leaf, dtype in leaves.items():
            cut = (slice(layer, layer + 1), *(slice(None) for _ in plan.leaf_shapes[leaf][1:]))
            state[leaf.removeprefix(prefix)] = engine.leaf_slice(plan, match, tensors, leaf, dtype, cut)[0]
        engine.release(tensors)
        yield tree_paths.unflatten(state)
