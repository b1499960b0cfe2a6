"""What planning asks of a system, and the modules that answer: `rvseg_jax.planning.<system>`."""

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import jax
from ml_collections import ConfigDict

from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import InputError

if TYPE_CHECKING:
    from rvseg_jax.planning.step import PlannedStep
    from rvseg_jax.planning.work import Work

SYSTEMS = ("flowrvs", "mllmseg", "geomotion")
Preset = TypeVar("Preset")


class Sample(NamedTuple):
    """What a batch consists of: "clips", "clips of 17 frames at 480x832"."""

    unit: str
    words: str


class Cuts(NamedTuple):
    """Numbers that the devices along tensor and along seq divide."""

    heads: int
    tokens: int


class System(Protocol):
    """A module that knows how a system trains.

    Attributes:
      TASK: the stage that can be planned, a name of `training.tasks`.
      RECIPE: the published one.
    """

    TASK: str
    RECIPE: str

    @staticmethod
    def resize(config: ConfigDict, *, size: str | None, frames: int | None) -> None:
        """Sets a recipe to a published size and its clips to some frames, and to what can be planned without files.

        Raises:
          ConfigError: for a size or frames that the system does not have.
        """

    @staticmethod
    def sample(own: Any) -> Sample:
        """A training sample in words."""

    @staticmethod
    def batch(own: Any, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a training batch as the data workers make them."""

    @staticmethod
    def parts(step: "PlannedStep") -> dict[str, str]:
        """Where each large part runs, and whether it is trained, in words."""

    @staticmethod
    def cuts(own: Any) -> Cuts:
        """Which meshes are worth a look."""

    @staticmethod
    def work(step: "PlannedStep", sizes: Mapping[str, int]) -> "Work":
        """What a step does on a mesh of these sizes."""


def module(name: str) -> System:
    """What planning knows of a system.

    Raises:
      InputError: for one that cannot be planned.
    """
    if name not in SYSTEMS:
        raise InputError(f"system {name!r} cannot be planned: choose one of {', '.join(SYSTEMS)}")
    return cast(System, importlib.import_module(f"rvseg_jax.planning.{name}"))


def of_task(task: str) -> System:
    """What planning knows of the system of a task.

    Raises:
      ConfigError: for a stage that cannot be planned.
    """
    name = task.partition(".")[0]
    if name not in SYSTEMS or task != module(name).TASK:
        known = module(name).TASK if name in SYSTEMS else f"one of {', '.join(SYSTEMS)}"
        raise ConfigError(f"task {task!r} cannot be planned: give a recipe of {known}")
    return module(name)


def published(sizes: Mapping[str, Callable[[], Preset]], size: str, what: str) -> Preset:
    """The config of a published size.

    Raises:
      ConfigError: for a size that is not there.
    """
    if size not in sizes:
        raise ConfigError(f"there is no {what} of size {size!r}: choose {' or '.join(sizes)}")
    return sizes[size]()


def trained_part(trained: Any, frozen: Any) -> str:
    """In words how much of a part is trained, from its parameters of both kinds."""
    count, rest = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained, frozen))
    if not count:
        return "in the step, frozen"
    return "in the step, trained" if not rest else f"in the step, {count:,} of {count + rest:,} parameters trained"
