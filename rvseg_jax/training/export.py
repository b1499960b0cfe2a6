"""From a training run to a checkpoint that the library loads."""

from pathlib import Path

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.training.config import parse
from rvseg_jax.training.tasks import HasExport, task_class
from rvseg_jax.training.weights import read_params


def export(workdir: str | Path, folder: str | Path, *, step: int | None = None) -> None:
    """Writes the weights of a run, the averaged ones if it keeps an average, in the form its task defines.

    Args:
      workdir: the run's folder.
      folder: where to write; made if need be.
      step: which checkpoint; None takes the newest.

    Raises:
      InputError: if the run has no such checkpoint, or it lacks frozen parameters that the export needs.
      ConfigError: if the task has no export.
    """
    params, meta = read_params(workdir, step=step)
    settings, own = parse(configs.from_json(meta["config"]))
    task = task_class(settings.task)(own, precision=settings.formats)
    if not isinstance(task, HasExport):
        raise ConfigError(f"task {settings.task!r} has no export")
    task.export(params, Path(folder))
