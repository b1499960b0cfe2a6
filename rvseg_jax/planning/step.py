"""The training step of a run as a program for devices that need not be there."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from rvseg_jax.parallel.rules import batch_shardings
from rvseg_jax.planning import systems
from rvseg_jax.training.config import RunConfig, parse
from rvseg_jax.training.loop import build_step
from rvseg_jax.training.state import TrainState
from rvseg_jax.training.step import TrainStep
from rvseg_jax.training.tasks import Task, task_class


@dataclass(frozen=True)
class PlannedStep:
    """A step and the shapes that it is for; nothing is allocated.

    Attributes:
      settings, own: the config, as training reads it.
      task: the stage of training.
      target: abstract state with its shardings.
      step: the step of `training.loop`.
      batch: abstract batch with its shardings.
    """

    settings: RunConfig
    own: Any
    task: Task
    target: TrainState
    step: TrainStep
    batch: dict[str, Any]

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return np.dtype(self.settings.formats.compute_dtype).itemsize

    def lower(self) -> Any:
        """The step, traced for its devices, as `jax.stages.Lowered`; call it under `jax.set_mesh`."""
        return self.step.function.lower(replace(self.target, frozen={}), self.target.frozen, self.batch)  # type: ignore[attr-defined]


class _TracedOnce:
    """A task whose parameters are traced for the first mesh only."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.init = jax.jit(task.init)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def task_of(config: ConfigDict) -> Any:
    """The task of a config, to plan it on several meshes.

    Raises:
      ConfigError: for a config that does not fit, or of a stage that cannot be planned yet.
    """
    settings, own = parse(config)
    systems.of_task(settings.task)
    return _TracedOnce(task_class(settings.task)(own, precision=settings.formats))


def planned_step(config: ConfigDict, mesh: Mesh | AbstractMesh, task: Any) -> PlannedStep:
    """The step that `training.loop.run` would compile for this config on this mesh.

    Args:
      mesh: an `AbstractMesh` will do where the step is not compiled.
      task: from `task_of`.
    """
    settings, own = parse(config)
    target, step, _ = build_step(settings, task, mesh, steps_per_epoch=1)  # type: ignore[arg-type]
    arrays = systems.of_task(settings.task).batch(own, settings.batch_size)
    placed = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        arrays,
        batch_shardings(arrays, mesh),  # type: ignore[arg-type]
    )
    return PlannedStep(settings, own, task, target, step, placed)
