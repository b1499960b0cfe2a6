"""What training asks of a system: the `Task` protocol, and the table of tasks by name.

A system implements a task in `rvseg_jax/systems/<system>/training.py` as a plain class; it need not (and,
being below this package, must not) import anything from here. One task is one stage of training: FlowRVS has
one for its autoencoder, one for the mask decoder and one for the transformer.

    @dataclass(frozen=True)
    class DiTConfig:                       # the sections that this task adds to a recipe
        model: WanDiTConfig = WanDiTConfig.tiny()
        data: ClipsConfig = ClipsConfig()
        end_point_share: float = 0.5

    class DiTTask:
        Config = DiTConfig

        def __init__(self, config: DiTConfig, *, precision: Precision) -> None: ...

Its recipes then read

    def get_config():
        config = base.get_config("flowrvs.dit")   # common fields + the fields of DiTTask.Config
        config.steps = 20_000
        config.model.num_layers = 6
        config.optimizer.trainable = ("^dit/",)
        return config

The run config is flat: `config.model` and `config.data` above stand beside `config.optimizer` and so on, and
all of them can be overridden on the command line with their types checked.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax

from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.precision import Precision

Params = dict[str, Any]
"""Parameters as nested plain dicts (`nnx.to_pure_dict`); leaves are arrays or `jax.ShapeDtypeStruct`."""
Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, Any]
UPDATES = "updates"
"""Name under which a loss returns new values of leaves beside its metrics."""

_TASKS = {
    "flowrvs.vae": "rvseg_jax.systems.flowrvs.autoencoder_training:VAETask",
    "flowrvs.mask_decoder": "rvseg_jax.systems.flowrvs.autoencoder_training:MaskDecoderTask",
    "flowrvs.dit": "rvseg_jax.systems.flowrvs.training:DiTTask",
    "geomotion.flow": "rvseg_jax.systems.geomotion.flow_training:FlowTask",
    "geomotion.geometry": "rvseg_jax.systems.geomotion.geometry_training:GeometryTask",
    "geomotion.motion": "rvseg_jax.systems.geomotion.training:MotionTask",
    "mllmseg.segment": "rvseg_jax.systems.mllmseg.training:SegmentTask",
    "tracker.sam2": "rvseg_jax.trackers.sam2.training:Sam2Task",
    "tracker.xmem": "rvseg_jax.trackers.xmem.training:XMemTask",
}


class Task(Protocol):
    """One stage of training of a system.

    Attributes:
      Config: frozen dataclass with defaults for all fields: what the task adds to a recipe. Its field names
        must differ from those of `training.config.RunConfig`. A field of type `Precision` inside it (model
        configs have one) is no part of a recipe; the task sets it from the `precision` that it is given.
      sharding_table: pairs (path regex, logical axis names by dimension) for all parameters of `init`, the
        tables of the models under their prefixes.
    """

    Config: ClassVar[type]
    sharding_table: Sequence[tuple[str, tuple[str | None, ...]]]

    def __init__(self, config: Any, *, precision: Precision) -> None:
        """Builds graph definitions and reads small files (a tokeniser); makes no parameters.

        Args:
          config: instance of `Config`.
          precision: number formats of the run; frozen parts may be kept in smaller ones.
        """
        ...

    def init(self, key: jax.Array) -> Params:
        """All parameters, trained and frozen, at their start values.

        It is traced: under `jax.eval_shape` for the shapes and under `jax.jit` with output shardings for the
        values, so it is pure JAX and independent of the mesh. Leaves that `restore_pretrained` gives are
        never computed.
        """
        ...

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean loss over the batch, and scalar metrics of its own.

        Traced inside the training step; differentiated with respect to the trained leaves only (the paths
        that `config.optimizer.trainable` matches), the others arrive as constants. Merge `params` with a
        GraphDef that the task holds. All randomness comes from `key`, which differs at every step and
        micro-batch. A loss with a fourth parameter `step` gets the number of steps done so far, an int32 [].

        Shapes:
          batch: arrays with a leading axis B, sharded over the mesh axes of "batch"; what `transform`
            returns, batched.

        Returns:
          (loss [], {name: scalar}) in float32; names must not be "loss", "grad_norm" or "lr". With gradient
          accumulation both are averaged over the micro-batches. Under `UPDATES` there may be {path: array}, new values
          of trained leaves that no gradient reaches, such as the statistics of a batch norm.
        """
        ...

    def source(self, split: str) -> Any:
        """Random-access source of one split ("train" or "validation") with `__len__` and `__getitem__`.

        It is pickled for worker processes: keep paths and numbers in it, no open files, no jax. Its `repr`
        names the data, the same in every process (a frozen dataclass has that): a run resumes only on the
        same data.
        """
        ...

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """Picklable function of a sample (and a `numpy.random.Generator`) to the arrays of one batch row.

        Called in worker processes, so without jax, by `input_pipeline.loader.make_loader`. Every row has the
        same keys, shapes and numeric dtypes.
        """
        ...


@runtime_checkable
class HasPretrained(Protocol):
    """A task that can start from given weights."""

    def restore_pretrained(self, target: Params) -> Params:
        """Leaves that are loaded rather than initialised.

        Called when a run is new, and when it resumes from a checkpoint without its frozen parameters.

        Args:
          target: `jax.ShapeDtypeStruct` with shape, dtype and sharding for the leaves that are wanted: all of
            `init` in a new run, the frozen ones in a resumed one.

        Returns:
          A sub-tree of `target` with arrays of those shapes, dtypes and shardings; `{}` loads nothing.
        """
        ...


@runtime_checkable
class HasEvaluation(Protocol):
    """A task that can be scored while it trains, every `config.evaluation.every` steps and at the end."""

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """Scores of the current weights (the averaged ones if the run keeps an average), frozen leaves
        included.

        Runs outside of jit under the run's mesh; the names are logged as "evaluation/<name>".
        """
        ...


@runtime_checkable
class HasExport(Protocol):
    """A task whose result can be used outside of training; see `training.export`."""

    def export(self, params: Params, folder: Path) -> None:
        """Writes all parameters, frozen ones included, in the form in which the system loads them."""
        ...


def register(name: str, target: str) -> None:
    """Adds a task of the user's own under `name`.

    Args:
      name: what recipes write into `config.task`.
      target: "package.module:Class".
    """
    _TASKS[name] = target


def task_class(name: str) -> type[Task]:
    """The class of a task by its name ("flowrvs.dit") or by "package.module:Class", imported on first use.

    Raises:
      ConfigError: if there is no such task.
    """
    target = _TASKS.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        raise ConfigError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)} or give 'module:Class'")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(f"task {name!r}: there is no module {module_name!r}") from error
    except AttributeError as error:
        raise ConfigError(f"task {name!r}: module {module_name!r} has no class {class_name!r}") from error
