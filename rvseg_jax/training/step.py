"""One optimizer step as one jitted, sharded function."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.tree_paths import SEPARATOR, flatten
from rvseg_jax.parallel.pjit import pjit
from rvseg_jax.parallel.rules import DEFAULT_RULES, Rules, batch_shardings
from rvseg_jax.training import ema
from rvseg_jax.training.optim import Schedule, global_norm
from rvseg_jax.training.state import TrainState, merge, shardings_of
from rvseg_jax.training.tasks import UPDATES, Batch, Metrics, Params

LossFn = Callable[..., tuple[jax.Array, Metrics]]
"""(trained parameters, frozen parameters, batch, key) -> (loss [], metrics); with `step=` where it has a parameter of
that name."""


@dataclass
class TrainStep:
    """A compiled step and the number of times that it was traced.

    Attributes:
      function: (state without `frozen`, frozen, batch) -> (state without `frozen`, metrics).
      traces: how often JAX has traced it, once for each new set of batch shapes; more than 1 is a recompile.
    """

    function: Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]
    traces: int = 0

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one more step, and scalar metrics; the given state is donated except for `frozen`."""
        after, metrics = self.function(replace(state, frozen={}), state.frozen, batch)
        return replace(after, frozen=state.frozen), metrics


def make_train_step(
    loss_fn: LossFn,
    transform: optax.GradientTransformation,
    rate: Schedule,
    target: TrainState,
    sharding: NamedSharding,
    *,
    max_decay: float = 0.9999,
    accumulate: int = 1,
) -> TrainStep:
    """The training step of a loss.

    A step whose loss or gradient norm is not finite changes nothing but `healthy`; so do all steps after it.
    The caller reads the metrics a step late and finds the state as it was before the bad step.

    Args:
      loss_fn: the loss; graph definitions are closed over.
      transform: the optimizer.
      rate: its learning rate by step, for the metrics.
      target: abstract state whose shardings parameters, gradients, moments and averages get.
      sharding: from `batch_sharding`; of the leading axis of every array of a batch.
      max_decay: cap of the moving average's decay, where `target` has one.
      accumulate: micro-batches that a batch is split into; gradients are summed in float32 and averaged.

    Returns:
      Function of (state, batch) to (state, {"loss", "grad_norm", "lr", and the loss's own}).
    """
    trained_shardings = shardings_of(target.params)
    replicated = target.step.sharding

    def body(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        step.traces += 1  # runs when JAX traces, not when it executes
        key = jax.random.fold_in(state.key, state.step)
        timed = partial(loss_fn, step=state.step) if _takes_step(loss_fn) else loss_fn
        grad_fn = jax.value_and_grad(timed, has_aux=True)
        result = _accumulated(grad_fn, state.params, frozen, batch, key, accumulate, sharding)
        (loss, extra), grads = result
        given = extra.get(UPDATES, {})
        grads = jax.lax.with_sharding_constraint(grads, trained_shardings)
        norm = global_norm(grads)
        healthy = state.healthy & jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = _with_leaves(params, given) if given else params
        average = ema.update(state.ema, params, state.step, max_decay) if state.ema else {}
        after = replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=average)
        after = replace(_select(healthy, after, state), healthy=healthy)
        extra = {name: value for name, value in extra.items() if name != UPDATES}
        return after, {**extra, "loss": loss, "grad_norm": norm, "lr": rate(state.step)}

    movable = replace(target, frozen={})
    step = TrainStep(
        pjit(
            body,
            in_shardings=(shardings_of(movable), shardings_of(target.frozen), sharding),
            out_shardings=(shardings_of(movable), replicated),
            donate_argnums=0,
        )
    )
    return step


def _with_leaves(params: Params, given: Mapping[str, jax.Array]) -> Params:
    """Parameters with other values at some paths."""
    missing = given.keys() - flatten(params).keys()
    if missing:
        raise ConfigError(f"the loss gives {min(missing)} a new value, which needs its path in optimizer.trainable")

    def walk(node: Params, prefix: str) -> Params:
        return {
            key: walk(value, f"{prefix}{key}{SEPARATOR}")
            if isinstance(value, dict)
            else given.get(f"{prefix}{key}", value).astype(value.dtype)
            for key, value in node.items()
        }

    return walk(params, "")


def batch_sharding(rows: int, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Sharding of every array of a batch: the leading axis by the rule for "batch", the others whole.

    Args:
      rows: samples of a batch, or of a micro-batch where gradients are accumulated.

    Raises:
      ConfigError: if `rows` does not divide by the devices that the rule asks for.
    """
    try:
        return batch_shardings(jax.ShapeDtypeStruct((rows,), jnp.float32), mesh, rules)
    except ValueError as error:
        raise ConfigError(f"batch_size / optimizer.accumulate is {rows}: {error}") from error


def _select(condition: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """`after` where the condition holds; the random key does not change and is left out of the selection."""
    new, old = replace(after, key=()), replace(before, key=())
    return replace(jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old), key=before.key)


def _accumulated(
    grad_fn: Callable[..., Any],
    params: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array,
    parts: int,
    sharding: NamedSharding,
) -> Any:
    """((loss, metrics), gradients) averaged over `parts` micro-batches, one after the other."""
    if parts == 1:
        return grad_fn(params, frozen, batch, jax.random.fold_in(key, 0))
    split = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def micro(leaf: jax.Array) -> jax.Array:
        # Every device splits its own rows: micro-batch i takes rows i, i + parts, ... of each shard.
        rows = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(rows, split)

    def add(total: Any, xs: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, rows = xs
        result = grad_fn(params, frozen, rows, jax.random.fold_in(key, index))
        return jax.tree.map(lambda t, r: t + r.astype(t.dtype) / parts, total, result), None

    batches = jax.tree.map(micro, batch)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    shapes = jax.eval_shape(grad_fn, params, frozen, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), batches))
    return jax.tree.map(lambda t, leaf: t.astype(leaf.dtype), total, shapes)


def task_loss(loss: Callable[..., tuple[jax.Array, Metrics]]) -> LossFn:
    """A task's loss of all parameters as one of trained and frozen ones."""
    if _takes_step(loss):
        return lambda trained, frozen, batch, key, *, step: loss(merge(trained, frozen), batch, key, step=step)
    return lambda trained, frozen, batch, key: loss(merge(trained, frozen), batch, key)


def _takes_step(loss: Callable[..., Any]) -> bool:
    return "step" in inspect.signature(loss).parameters
