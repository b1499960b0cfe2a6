"""The fields that every training recipe has, with types, defaults and meaning.

A recipe's `ConfigDict` holds these fields and, beside them, the fields of its task's `Config`; `parse` reads
it into both. Sizes are in samples and steps unless a name says epochs.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ml_collections import ConfigDict

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.precision import Precision, by_name
from rvseg_jax.parallel.mesh import MeshShape
from rvseg_jax.training.tasks import task_class


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for some matrices, and what it is applied to.

    Attributes:
      lr: learning rate at the peak of the schedule.
      muon: path regexes of the kernels whose momentum is orthogonalised (Muon) instead of divided by the root of
        a second moment; none by default. Updates then have the size that AdamW's have, for one learning rate.
      betas: decay rates of the two moments.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, multiplied by the learning rate.
      decay: path regexes of the parameters that decay; the default is all, norms and biases included.
      clip_norm: largest global gradient norm; 0 turns clipping off.
      trainable: path regexes of the trained parameters; all others are frozen, without gradient or moments.
      lr_factors: pairs (path regex, factor of the learning rate); the first that matches a path counts.
      accumulate: micro-batches per step, of `batch_size / accumulate` samples each.
    """

    lr: float = 1e-4
    muon: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("",)
    clip_norm: float = 1.0
    trainable: tuple[str, ...] = ("",)
    lr_factors: tuple[tuple[str, float], ...] = ()
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}: it must be at least 1")
        if not self.trainable:
            raise ValueError("trainable is empty: nothing would be trained")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time, as a factor of `optimizer.lr`.

    Attributes:
      kind: "constant"; "cosine" from 1 to `final` at the last step; "multistep", times `gamma` at each
        milestone.
      warmup_steps: steps of linear rise, for every kind; step k (from 0) has factor (k + 1) / warmup_steps.
      final: factor at the end of "cosine".
      milestones: epochs (passes over the training source) or steps after which "multistep" falls.
      milestone_unit: which of the two.
      gamma: factor at each milestone.
    """

    kind: Literal["constant", "cosine", "multistep"] = "constant"
    warmup_steps: int = 0
    final: float = 0.0
    milestones: tuple[int, ...] = ()
    milestone_unit: Literal["epochs", "steps"] = "epochs"
    gamma: float = 0.1


@dataclass(frozen=True)
class EMAConfig:
    """Float32 exponential moving average of the trained parameters.

    Attributes:
      enabled: whether one is kept; evaluation then uses it.
      max_decay: the decay that the warm-up (1 + s) / (10 + s) rises to.
    """

    enabled: bool = False
    max_decay: float = 0.9999


@dataclass(frozen=True)
class LoaderConfig:
    """Reading of training samples.

    Attributes:
      num_workers: worker processes; 0 reads in the training process.
      prefetch: batches that each worker holds ready.
    """

    num_workers: int = 0
    prefetch: int = 2


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving.

    Attributes:
      every: steps between saves; the last step and SIGTERM save too.
      keep: newest checkpoints that are kept.
      keep_best: best checkpoints by `best_metric` that are kept besides.
      best_metric: name of an evaluation metric, larger is better; "" keeps by age only.
      save_frozen: whether frozen parameters are stored too, which makes a checkpoint complete in itself;
        otherwise a resumed run gets them where the first one did.
    """

    every: int = 1000
    keep: int = 2
    keep_best: int = 0
    best_metric: str = ""
    save_frozen: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"every is {self.every} and keep is {self.keep}: both must be at least 1")
        if self.keep_best > 0 and not self.best_metric:
            raise ValueError("keep_best needs best_metric: name a metric of the task's evaluation")


@dataclass(frozen=True)
class LogConfig:
    """What a run says.

    Attributes:
      every: steps between rows of `metrics.jsonl` and TensorBoard events.
      tensorboard: whether the latter are written.
      profile: (first step, number of steps) of a window that JAX's profiler records into `profile/` of the run's
        folder; no steps record nothing. TensorBoard and Perfetto show it.
    """

    every: int = 10
    tensorboard: bool = True
    profile: tuple[int, int] = (10, 0)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}: it must be at least 1")
        if min(self.profile) < 0:
            raise ValueError(f"profile is {self.profile}: give the first step and how many steps to record")


@dataclass(frozen=True)
class EvaluationConfig:
    """Calls of the task's `evaluate`: every `every` steps and after the last; 0 is never."""

    every: int = 0


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
      task: name of the task, such as "flowrvs.dit"; see `training.tasks`.
      seed: seed of initialisation, noise and data order.
      steps: optimizer steps of the whole run, resumed parts included.
      epochs: passes over the training source; if it is not 0 it takes the place of `steps`.
      batch_size: samples per step over all devices and processes.
      mesh: devices along each mesh axis.
      precision: "float32", "mixed" (float32 parameters, bfloat16 compute), "bfloat16" or "parity".
    """

    task: str
    seed: int = 42
    steps: int = 1000
    epochs: int = 0
    batch_size: int = 8
    precision: Literal["parity", "float32", "bfloat16", "mixed"] = "float32"
    mesh: MeshShape = field(default_factory=MeshShape)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps {self.steps} and batch_size {self.batch_size} must be at least 1")
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}: it must not be negative")
        if self.batch_size % (parts := self.optimizer.accumulate):
            raise ValueError(f"batch_size {self.batch_size} is no multiple of optimizer.accumulate {parts}")

    @property
    def formats(self) -> Precision:
        """The number formats that `precision` names."""
        return by_name(self.precision)


def default(task: str) -> ConfigDict:
    """Locked config of the common fields and those of a task, all at their defaults."""
    run = configs.from_dataclass(RunConfig(task))
    own = configs.from_dataclass(task_class(task).Config)
    if clash := sorted(set(run) & set(own)):
        raise TypeError(f"Config of task {task!r} repeats fields of RunConfig: {', '.join(clash)}")
    with run.unlocked():
        run.update(own)
    return run


def parse(config: ConfigDict) -> tuple[RunConfig, Any]:
    """The common fields of a run config, and the task's own as its `Config`.

    Raises:
      ConfigError: for an unknown or missing key or a value that does not fit; the nearest known key is named.
    """
    if not config.get("task"):
        raise ConfigError("config key 'task' is missing: set it in the recipe, such as \"flowrvs.dit\"")
    own = task_class(config.task).Config
    common = {f.name for f in dataclasses.fields(RunConfig)}
    known = common | {f.name for f in dataclasses.fields(own)}
    for key in config:
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}: {configs.nearest(key, sorted(known))}")
    run = configs.to_dataclass({k: v for k, v in config.items() if k in common}, RunConfig)
    return run, configs.to_dataclass({k: v for k, v in config.items() if k not in common}, own)
