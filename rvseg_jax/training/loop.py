"""A training run from its config to its last checkpoint.

Batches go to a jitted step that is dispatched and not waited for; its metrics are read when the next step is
on its way. Everything that a step depends on (parameters, moments, average, random key, position of the
data) is in each checkpoint, so that a run that was cut off and started again does the same arithmetic as one
that was not.
"""

import math
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rvseg_jax.core import config as configs
from rvseg_jax.core import logging
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import InputError, UserError
from rvseg_jax.parallel import distributed
from rvseg_jax.parallel.mesh import make_mesh
from rvseg_jax.training import optim
from rvseg_jax.training.batches import Batches
from rvseg_jax.training.checkpoint import Checkpoints
from rvseg_jax.training.config import RunConfig, parse
from rvseg_jax.training.preemption import stop_on_sigterm, told_to_stop
from rvseg_jax.training.profiler import Profiler
from rvseg_jax.training.report import Meter, Report, memory_gib
from rvseg_jax.training.state import TrainState, abstract, create, initial_params, size
from rvseg_jax.training.step import TrainStep, batch_sharding, make_train_step, task_loss
from rvseg_jax.training.tasks import Batch, HasEvaluation, Metrics, Task, task_class

_logger = logging.get_logger(__name__)


class NonFiniteLoss(UserError, ArithmeticError):
    """The loss or a gradient became infinite or NaN; the last good state has been saved."""


class DataError(UserError, RuntimeError):
    """A training batch could not be read; the state before it has been saved."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps done, resumed parts included.
      finished: false if the run was told to stop (SIGTERM) before its last step.
      metrics: the last row of training metrics and of the evaluation.
      state: the final state.
    """

    step: int
    finished: bool
    metrics: dict[str, float]
    state: TrainState


def run(config: ConfigDict, workdir: str | Path) -> Result:
    """Trains, or goes on training, what `config` describes.

    A workdir with checkpoints is resumed from the newest; what differs between its config and this one is
    logged.

    Args:
      config: from `core.config.load` or a recipe's `get_config`.
      workdir: folder of checkpoints and metrics; made if need be, local or remote by `etils.epath`.

    Raises:
      ConfigError: if the config does not fit.
      NonFiniteLoss: if a loss or gradient is not finite; the state before it is saved first.
      DataError: if a batch cannot be read; the state before it is saved first.
      InputError: if the workdir's checkpoint does not fit the config or the data.
    """
    settings, own = parse(config)
    distributed.initialize()
    logging.setup(process_index=jax.process_index())
    with ExitStack() as stack:
        mesh = make_mesh(settings.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        task = task_class(settings.task)(own, precision=settings.formats)
        checkpoints = Checkpoints(workdir, settings.checkpoint)
        stack.callback(checkpoints.close)
        trainer = _prepare(config, settings, task, checkpoints, mesh, workdir)
        stack.callback(trainer.close)
        return trainer.train(stack.enter_context(stop_on_sigterm()))


def _prepare(
    config: ConfigDict,
    settings: RunConfig,
    task: Task,
    checkpoints: Checkpoints,
    mesh: Mesh,
    workdir: str | Path,
) -> "_Trainer":
    """Builds the step, makes or restores the state, and opens the data at its position."""
    if settings.evaluation.every and not isinstance(task, HasEvaluation):
        raise ConfigError(f"evaluation.every is set, but task {settings.task!r} has no evaluation: set it to 0")
    source = task.source("train")
    if len(source) < settings.batch_size:
        raise ConfigError(f"batch_size {settings.batch_size} is more than the {len(source)} training samples")
    steps_per_epoch = len(source) // settings.batch_size
    if settings.epochs:
        settings = replace(settings, steps=settings.epochs * steps_per_epoch)
    target, step, transform = build_step(settings, task, mesh, steps_per_epoch=steps_per_epoch)
    batches = Batches(settings, task, source, mesh)
    start = checkpoints.latest()
    if start is None:
        state = create(target, task, transform, settings.seed)
    else:
        state, position = _resume(config, settings, task, checkpoints, target, start)
        try:
            batches.set_state(position)
        except ValueError as error:
            raise InputError(f"{workdir}: {error}") from error
    _logger.info(
        "%s: %s parameters trained, %s frozen, mesh %s, step %d of %d",
        settings.task,
        f"{size(target.params):,}",
        f"{size(target.frozen):,}",
        dict(mesh.shape),
        start or 0,
        settings.steps,
    )
    report = Report(
        workdir,
        start=start or 0,
        steps=settings.steps,
        tensorboard=settings.log.tensorboard,
        writes=distributed.is_main_process(),
    )
    meta = {"config": configs.to_json(config), **_origin()}
    profiler = Profiler(workdir, *settings.log.profile)
    return _Trainer(settings, task, checkpoints, step, batches, report, profiler, meta, state, start or 0)


def build_step(
    settings: RunConfig, task: Task, mesh: Mesh, *, steps_per_epoch: int
) -> tuple[TrainState, TrainStep, optax.GradientTransformation]:
    """The abstract state, the step on it, and the optimizer; compilation itself waits for the first batch."""
    rate = optim.schedule(
        settings.schedule, settings.optimizer.lr, steps=settings.steps, steps_per_epoch=steps_per_epoch
    )
    transform = optim.optimizer(settings.optimizer, rate)
    target = abstract(task, transform, mesh, patterns=settings.optimizer.trainable, averaged=settings.ema.enabled)
    step = make_train_step(
        task_loss(task.loss),
        transform,
        rate,
        target,
        batch_sharding(settings.batch_size // settings.optimizer.accumulate, mesh),
        max_decay=settings.ema.max_decay,
        accumulate=settings.optimizer.accumulate,
    )
    return target, step, transform


def _resume(
    config: ConfigDict,
    settings: RunConfig,
    task: Task,
    checkpoints: Checkpoints,
    target: TrainState,
    start: int,
) -> tuple[TrainState, dict[str, Any]]:
    """The state and the data position after step `start`; frozen leaves come from the checkpoint or the task."""
    saved = configs.from_json(checkpoints.document("meta", start)["config"])
    for key, (old, new) in configs.differences(saved, config).items():
        _logger.warning("config key %s was %r when this run was saved and is %r now", key, old, new)
    state, position = checkpoints.restore(target, start)
    if target.frozen and not state.frozen:
        (frozen,) = initial_params(task, jax.random.key(settings.seed), target.frozen)
        state = replace(state, frozen=frozen)
    return state, position


class _Trainer:
    """The loop itself: what it works with, and how far it is."""

    def __init__(
        self,
        settings: RunConfig,
        task: Task,
        checkpoints: Checkpoints,
        step: TrainStep,
        batches: Any,
        report: Report,
        profiler: Profiler,
        meta: Mapping[str, Any],
        state: TrainState,
        start: int,
    ) -> None:
        self._report = report
        self._profiler = profiler
        self._settings = settings
        self._task = task
        self._checkpoints = checkpoints
        self._step = step
        self._batches = batches
        self._meta = meta
        self._state = state
        self._start = start
        self._done = start
        # Positions of the data after the newest steps: a bad step is noticed one step late, and the state
        # before it is then saved with the position that belongs to it.
        self._positions = {start: batches.get_state()}
        self._meter = Meter(settings.batch_size)
        self._values: dict[str, float] = {}

    def close(self) -> None:
        """Ends the worker processes of the data and closes the metric files."""
        self._batches.close()
        self._profiler.close()
        self._report.close()

    def train(self, stop: threading.Event) -> Result:
        """Steps until the end of the run or until `stop` is set, then saves."""
        settings = self._settings
        unread: Metrics | None = None
        stopped = False
        while self._done < settings.steps and not stopped:
            try:
                batch = self._next_batch()
            except Exception as error:
                if unread is not None:
                    self._read(self._done, unread)
                self._save(self._done, None)
                raise DataError(
                    f"no data for step {self._done + 1} ({error}): the state after step {self._done} is saved; "
                    "mend the data and run again"
                ) from error
            metrics = self._advance(batch)
            if unread is not None:
                self._read(self._done - 1, unread)
            unread = metrics
            stopped = told_to_stop(stop, self._done)
            last = stopped or self._done == settings.steps
            save = last or self._done % settings.checkpoint.every == 0
            every = settings.evaluation.every
            evaluate = every > 0 and (self._done % every == 0 or self._done == settings.steps)
            if save or evaluate:
                self._read(self._done, unread)  # nothing is saved or scored before it is known to be sound
                unread = None
                scores = self._evaluate() if evaluate else None
                if save:
                    self._save(self._done, scores)
        if stopped:
            _logger.info("stopped by SIGTERM after step %d, which is saved: run again to go on", self._done)
        return Result(self._done, self._done >= settings.steps, self._values, self._state)

    def _next_batch(self) -> Batch:
        begin = time.perf_counter()
        batch = next(self._batches)
        self._meter.wait(time.perf_counter() - begin)
        return batch

    def _advance(self, batch: Batch) -> Metrics:
        """Dispatches one step and returns its metrics, which are not there yet."""
        self._profiler.before(self._done + 1)
        self._state, metrics = self._step(self._state, batch)
        self._done += 1
        self._positions[self._done] = self._batches.get_state()
        self._positions.pop(self._done - 3, None)
        return metrics

    def _read(self, step: int, metrics: Metrics) -> None:
        """Fetches the metrics of a step, checks and reports them."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if bad:
            self._save(step - 1, None)
            raise NonFiniteLoss(
                f"{bad[0]} is {values[bad[0]]} at step {step}: the state after step {step - 1} is saved; "
                "lower optimizer.lr, or look at the samples of this step, and run again"
            )
        self._values.update(values)
        self._profiler.after(step)
        self._meter.step()
        self._report.progress(step, values["loss"])
        if step % self._settings.log.every == 0 or step == self._settings.steps:
            system = {**self._meter.read(), "memory_gib": memory_gib(), "recompiles": self._step.traces - 1}
            self._report.row(step, {**values, **system})
        elif step == self._start + 1:
            self._meter.restart()  # compilation is over

    def _evaluate(self) -> dict[str, float]:
        assert isinstance(self._task, HasEvaluation)  # checked when the run was prepared
        weights = self._state.weights(averaged=True)
        scores = {name: float(v) for name, v in self._task.evaluate(weights, step=self._done).items()}
        named = {f"evaluation/{name}": value for name, value in scores.items()}
        self._values.update(named)
        self._report.row(self._done, named)
        self._meter.restart()  # the time that scoring took is no training time
        return scores

    def _save(self, step: int, scores: Mapping[str, float] | None) -> None:
        best = self._settings.checkpoint.best_metric
        if best and scores is not None and best not in scores:
            raise ConfigError(f"checkpoint.best_metric is {best!r}, but the evaluation gives {', '.join(scores)}")
        self._checkpoints.save(self._state, step, data=self._positions[step], meta=self._meta, metrics=scores)
        self._report.sync()


def _origin() -> dict[str, Any]:
    """Which code a run was made with: commit of the checkout, if it is one, and versions."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    names = ("rvseg_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain")
    return {"commit": commit, "versions": {name: metadata.version(name) for name in names}}
