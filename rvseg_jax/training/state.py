"""The state of a training run: one pytree of nested plain dicts, made and kept sharded."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.tree_paths import SEPARATOR, flatten, matches
from rvseg_jax.parallel.rules import DEFAULT_RULES, Rules, shardings, shardings_like
from rvseg_jax.training import ema
from rvseg_jax.training.tasks import HasPretrained, Params, Task


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: [] int32, optimizer steps done.
      params: trained parameters.
      frozen: parameters that are read but neither trained nor donated.
      opt_state: optimizer state; moments of the trained parameters only.
      ema: float32 average of `params`, `{}` if the run keeps none.
      key: [] random key of the run; a step folds its number in.
      healthy: [] bool; false from the first step on whose loss or gradient is not finite. From then on steps
        leave everything else as it was.
    """

    step: Any
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params
    key: Any
    healthy: Any

    def weights(self, *, averaged: bool) -> Params:
        """All parameters as one tree; `averaged` takes the moving average (in the format of the parameters)."""
        trained = self.params
        if averaged and self.ema:
            trained = jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), self.ema, self.params)
        return merge(trained, self.frozen)


def partition(tree: Params, chosen: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits nested dicts in two by the paths of their leaves; keys keep their types, empty branches vanish.

    Returns:
      (leaves whose path is chosen, the others).
    """

    def walk(node: Mapping[Any, Any], prefix: str) -> tuple[Params, Params]:
        first: Params = {}
        second: Params = {}
        for key, value in node.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping):
                a, b = walk(value, f"{path}{SEPARATOR}")
                if a:
                    first[key] = a
                if b:
                    second[key] = b
            else:
                (first if chosen(path) else second)[key] = value
        return first, second

    return walk(tree, "")


def merge(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> Params:
    """The union of two trees of nested dicts that share no leaf; the inverse of `partition`.

    Raises:
      ValueError: if a leaf is in both.
    """
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = merge(merged[key], value)
        else:
            raise ValueError(f"parameter {key!r} is in both trees")
    return merged


def trainable(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """(trained, frozen) parameters by path regexes.

    Raises:
      ConfigError: if a pattern matches no parameter, which would freeze silently what was to be trained.
    """
    paths = list(flatten(params))
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            groups = ", ".join(sorted({path.split(SEPARATOR)[0] for path in paths}))
            raise ConfigError(f"optimizer.trainable {pattern!r} matches no parameter: the tree has {groups}")
    return partition(params, lambda path: matches(path, patterns))


def abstract(
    task: Task,
    transform: optax.GradientTransformation,
    mesh: Mesh,
    *,
    patterns: Sequence[str],
    averaged: bool,
    rules: Rules = DEFAULT_RULES,
) -> TrainState:
    """The shapes, formats and shardings of a run's state; nothing is computed or allocated.

    Moments and averages are sharded like the parameters that they belong to, scalars are replicated.

    Args:
      task: whose parameters, and whose sharding table.
      transform: the optimizer.
      mesh: the devices.
      patterns: path regexes of the trained parameters.
      averaged: whether a moving average is kept.
      rules: logical axis names to mesh axes.

    Raises:
      ConfigError: if a pattern matches no parameter.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)
    params = _placed(params, shardings(params, task.sharding_table, rules, mesh))
    trained, frozen = trainable(params, patterns)

    def like(tree: Any) -> Any:
        return _placed(tree, shardings_like(tree, trained, shardings_of(trained), mesh))

    scalar = partial(jax.ShapeDtypeStruct, (), sharding=NamedSharding(mesh, PartitionSpec()))
    return TrainState(
        step=scalar(jnp.int32),
        params=trained,
        frozen=frozen,
        opt_state=like(jax.eval_shape(transform.init, trained)),
        ema=like(jax.eval_shape(ema.init, trained)) if averaged else {},
        key=scalar(key.dtype),
        healthy=scalar(jnp.bool_),
    )


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def size(tree: Any) -> int:
    """Number of elements of all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def create(target: TrainState, task: Task, transform: optax.GradientTransformation, seed: int) -> TrainState:
    """The state at step 0: each leaf is made on its devices, directly in its shards.

    Args:
      target: from `abstract`.
      task: initialises the parameters, except those that it loads.
      transform: the optimizer.
      seed: of the initialisation and of all noise of the run.
    """
    key = jax.random.key(seed)
    params, frozen = initial_params(task, key, target.params, target.frozen)
    opt_state = jax.jit(transform.init, out_shardings=shardings_of(target.opt_state))(params)
    average = jax.jit(ema.init, out_shardings=shardings_of(target.ema))(params) if target.ema else {}
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), target.step.sharding),
        params=params,
        frozen=frozen,
        opt_state=opt_state,
        ema=average,
        key=jax.device_put(jax.random.fold_in(key, 1), target.key.sharding),
        healthy=jax.device_put(jnp.asarray(True), target.healthy.sharding),
    )


def initial_params(task: Task, key: jax.Array, *targets: Params) -> tuple[Params, ...]:
    """The leaves of each target: loaded where the task loads them, else as `task.init` makes them from `key`.

    Every target is initialised by a program of its own, so that the frozen parameters come out the same to
    the last bit in a resumed run, which makes no others.

    Raises:
      ValueError: if a loaded leaf is in no target or has another shape or format.
    """
    target = reduce(merge, targets)
    loaded = task.restore_pretrained(target) if isinstance(task, HasPretrained) else {}
    wanted, given = flatten(target), flatten(loaded)
    for path, leaf in given.items():
        if path not in wanted:
            raise ValueError(f"restore_pretrained gave {path!r}, which is no parameter of the task")
        if (leaf.shape, leaf.dtype) != (wanted[path].shape, wanted[path].dtype):
            raise ValueError(
                f"restore_pretrained gave {path!r} as {leaf.dtype}{list(leaf.shape)} "
                f"instead of {wanted[path].dtype}{list(wanted[path].shape)}"
            )

    def complete(target: Params) -> Params:
        paths = set(flatten(target))
        missing, _ = partition(target, lambda path: path not in given)
        own, _ = partition(loaded, paths.__contains__)
        if not missing:
            return own
        absent = set(flatten(missing))

        def start(key: jax.Array) -> Params:
            # Only what is returned is computed: XLA drops the initialisation of all other leaves.
            return partition(task.init(key), absent.__contains__)[0]

        return merge(jax.jit(start, out_shardings=shardings_of(missing))(key), own)

    return tuple(complete(target) for target in targets)
