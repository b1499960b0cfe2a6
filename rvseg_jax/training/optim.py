"""AdamW with torch's clipping, Muon, learning-rate schedules, and settings by parameter path."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.tree_paths import matches
from rvseg_jax.parallel.rules import path_of
from rvseg_jax.training.config import OptimizerConfig, ScheduleConfig
from rvseg_jax.training.tasks import Params

Schedule = Callable[[jax.Array], jax.Array]

# `torch.nn.utils.clip_grad_norm_` adds this to the norm before it divides.
CLIP_EPS = 1e-6
# Root mean square of AdamW's updates in practice, to which Muon's are scaled (Liu et al. 2025, section 2.2).
MUON_RMS = 0.2


def schedule(config: ScheduleConfig, lr: float, *, steps: int, steps_per_epoch: int) -> Schedule:
    """Learning rate as a function of the number of steps done so far.

    Args:
      config: kind and shape of the schedule.
      lr: its peak.
      steps: length of the run; "cosine" ends there.
      steps_per_epoch: steps of one pass over the training source; "multistep" counts in them unless it counts in
        steps, like `torch.optim.lr_scheduler.MultiStepLR` stepped once an epoch.

    Returns:
      Function of [] int (0 for the first step) to [] float32.
    """

    def factor(count: jax.Array) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        if config.kind == "cosine":
            span = max(1, steps - config.warmup_steps)
            progress = jnp.clip((step - config.warmup_steps) / span, 0, 1)
            value = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(math.pi * progress))
        elif config.kind == "multistep":
            unit = steps_per_epoch if config.milestone_unit == "epochs" else 1
            starts = jnp.asarray([m * unit for m in config.milestones], jnp.float32)
            value = config.gamma ** jnp.sum(step >= starts)
        else:
            value = jnp.ones_like(step)
        if config.warmup_steps:
            value = value * jnp.minimum(1.0, (step + 1) / config.warmup_steps)
        return value

    return lambda count: lr * factor(count)


def global_norm(tree: Params) -> jax.Array:
    """Root of the sum of squares over all leaves, in float32 whatever the format of the leaves."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients as `torch.nn.utils.clip_grad_norm_` does: by min(1, max_norm / (norm + 1e-6)).

    `optax.clip_by_global_norm` divides by the bare norm, and only above `max_norm`.
    """

    def clip(updates: Params, _: Params | None) -> Params:
        scale = jnp.minimum(1.0, max_norm / (global_norm(updates) + CLIP_EPS))
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates)

    return optax.stateless(clip)


def optimizer(config: OptimizerConfig, rate: Schedule) -> optax.GradientTransformation:
    """The optimizer of a run: clip, moments, decoupled weight decay, learning rate by path and time.

    Decay and factors go by the paths of the tree that the transformation is given, joined by "/". Moments have
    the format of the parameters, as in torch. The state has one form whatever is switched on, so that a run can
    be resumed with clipping or decay changed.
    """
    return optax.chain(
        clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        _scale_by_moments(config),
        _decay_by_path(config.weight_decay, config.decay) if config.weight_decay else optax.identity(),
        _scale_by_path(config.lr_factors) if config.lr_factors else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )


def _scale_by_moments(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam, and Muon for the kernels that ask for it.

    Raises:
      ConfigError: for a pattern that matches no parameter, or one that is no matrix or stack of matrices.
    """
    adam = optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.eps)
    if not config.muon:
        return adam

    def label(keys: tuple, leaf: jax.Array) -> str:
        path = path_of(keys)
        if not matches(path, config.muon):
            return "adam"
        if leaf.ndim not in (2, 3):
            raise ConfigError(f"optimizer.muon matches {path!r} {leaf.shape}: name kernels [in, out] or [L, in, out]")
        return "muon"

    def labels(params: Params) -> Params:
        found = jax.tree_util.tree_map_with_path(label, params)
        if "muon" not in jax.tree.leaves(found):
            raise ConfigError(f"optimizer.muon {config.muon} matches no trained parameter")
        return found

    return optax.partition({"adam": adam, "muon": _muon(config.betas[0])}, labels)


def _muon(beta: float) -> optax.GradientTransformation:
    """Orthogonalised momentum of kernels [..., in, out], at the size of AdamW's updates."""

    def axes(updates: Params) -> Params:
        return jax.tree.map(lambda leaf: contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), updates)

    def resize(updates: Params, _: Params | None) -> Params:
        return jax.tree.map(lambda leaf: leaf * (MUON_RMS * math.sqrt(max(leaf.shape[-2:]))), updates)

    return optax.chain(
        contrib.scale_by_muon(beta=beta, weight_dimension_numbers=axes),
        optax.stateless(resize),
    )


def _decay_by_path(weight: float, patterns: Sequence[str]) -> optax.GradientTransformation:
    """Adds `weight` times the parameter to the updates whose paths match any of the patterns."""

    def decay(keys: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
        return update + weight * param if matches(path_of(keys), patterns) else update

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(decay, updates, params))


def _scale_by_path(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first pattern that its path matches."""

    def scale(keys: tuple, update: jax.Array) -> jax.Array:
        path = path_of(keys)
        return update * next((factor for pattern, factor in factors if matches(path, [pattern])), 1.0)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
