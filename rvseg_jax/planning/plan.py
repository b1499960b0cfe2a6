"""`plan`: a recipe, a topology, a mesh; what a step needs there, and which meshes would do."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import InputError
from rvseg_jax.parallel.mesh import AXES, MeshShape
from rvseg_jax.planning import compile as compiler
from rvseg_jax.planning import flowrvs
from rvseg_jax.planning.chips import Topology
from rvseg_jax.planning.estimate import Estimate, Flops, abstract_mesh, estimate, meshes, ranked, step_flops
from rvseg_jax.planning.step import planned_step, task_of
from rvseg_jax.training.config import parse
from rvseg_jax.training.state import size as size_of

SYSTEMS = {"flowrvs": flowrvs.RECIPE}


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a topology.

    Attributes:
      system, recipe: what was planned.
      topology: where.
      batch_size: samples of a step over all devices.
      clip: frames, height and width of a training clip.
      parameters: {"trained", "frozen"}: their number.
      encoders: where the autoencoder and the text encoder run.
      flops: operations of a step over all devices, counted from the model's sizes.
      chosen: the mesh asked for, estimated.
      compiled: what the compiler found for that mesh, see `planning.worker.measured`; None if it was not asked.
      fitting: meshes whose estimate fits, most samples a second first; each with one sample for a part of the batch.
      looked_at: how many meshes were estimated.
    """

    system: str
    recipe: str
    topology: Topology
    batch_size: int
    clip: tuple[int, int, int]
    parameters: dict[str, int]
    encoders: dict[str, str]
    flops: Flops
    chosen: Estimate
    compiled: dict[str, Any] | None
    fitting: tuple[Estimate, ...]
    looked_at: int

    @property
    def fits(self) -> bool:
        """Whether the step fits the chips: by the compiler where it was asked, else by the estimate."""
        return self.chosen.fits if self.compiled is None else bool(self.compiled["fits"])

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""

        def values(found: Estimate) -> dict[str, Any]:
            derived = {"fits": found.fits, "bound_seconds": found.bound, "samples_per_second": found.rate}
            return dataclasses.asdict(found) | derived

        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "topology": dataclasses.asdict(self.topology) | {"chip": dataclasses.asdict(self.topology.chip)},
            "flops": dataclasses.asdict(self.flops) | {"total": self.flops.total},
            "chosen": values(self.chosen),
            "fitting": [values(found) for found in self.fitting],
            "fits": self.fits,
        }


def plan(
    system: str,
    topology: str,
    *,
    recipe: str | None = None,
    mesh: dict[str, int] | None = None,
    size: str | None = None,
    frames: int | None = None,
    batch_size: int | None = None,
    overrides: Iterable[str] = (),
    fast: bool = False,
) -> Plan:
    """Plans a training step of a system on a TPU slice.

    Args:
      system: "flowrvs".
      topology: such as "v5e:16x16" or "v5p:4x4x4".
      recipe: name or path of a recipe; the published one by default.
      mesh: sizes of the axes, -1 for the devices that are left; the recipe's by default.
      size: "1.3b" or "14b" of the published transformers; the recipe's by default.
      frames: frames of a clip; the recipe's by default.
      batch_size: samples of a step; by default one for each part of the batch, that is data times fsdp, and for
        each micro-batch where gradients are accumulated.
      overrides: of the recipe, such as "remat=dots".
      fast: estimates only and compiles nothing.

    Raises:
      InputError: for a value that does not fit.
      NotAvailable: without libtpu, unless `fast`.
      CheckFailed: if the compiler fails for another reason than memory.
    """
    if system not in SYSTEMS:
        raise InputError(f"system {system!r} cannot be planned: choose one of {', '.join(SYSTEMS)}")
    place = Topology.parse(topology)
    if not fast:
        compiler.require(topology)
    recipe = recipe or SYSTEMS[system]
    config = configs.load(recipe, overrides)
    if config.task != flowrvs.TASK:
        raise ConfigError(f"recipe {recipe!r} is of task {config.task!r}: give one of {flowrvs.TASK}")
    flowrvs.resize(config, size=size, frames=frames)
    wanted = dict(config.mesh) if mesh is None else {**dict.fromkeys(AXES, 1), **mesh}
    sizes = dataclasses.asdict(MeshShape(**wanted).resolve(place.devices))
    task = task_of(config)

    def on(sizes: dict[str, int], rows: int | None) -> Estimate:
        _settle(config, sizes, rows)
        return estimate(planned_step(config, abstract_mesh(sizes), task), sizes, place)

    own = parse(config)[1]
    found = [on(each, None) for each in meshes(place.devices, own)]
    chosen = on(sizes, batch_size)
    step = planned_step(config, abstract_mesh(sizes), task)
    return Plan(
        system=system,
        recipe=recipe,
        topology=place,
        batch_size=step.settings.batch_size,
        clip=flowrvs.clip(own),
        parameters={"trained": size_of(step.target.params), "frozen": size_of(step.target.frozen)},
        encoders=flowrvs.encoders_in_step(own, step.target.frozen),
        flops=step_flops(step, kernel="ring" if sizes["seq"] > 1 else "splash"),
        chosen=chosen,
        compiled=None if fast else compiler.compiled(config, topology, sizes),
        fitting=tuple(ranked(found)),
        looked_at=len(found),
    )


def _settle(config: ConfigDict, sizes: dict[str, int], rows: int | None) -> None:
    """Writes mesh and batch size into the config."""
    config.mesh.update(sizes)
    config.batch_size = rows or sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate
