"""`plan`: a recipe, a topology, a mesh; what a step needs there, and which meshes would do."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.parallel.mesh import AXES, MeshShape
from rvseg_jax.planning import compile as compiler
from rvseg_jax.planning import systems
from rvseg_jax.planning.chips import Topology
from rvseg_jax.planning.estimate import Estimate, abstract_mesh, estimate, meshes, ranked
from rvseg_jax.planning.step import planned_step, task_of
from rvseg_jax.training.config import parse
from rvseg_jax.training.state import size as size_of


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a topology.

    Attributes:
      system, recipe: what was planned.
      topology: where.
      batch_size: samples of a step over all devices.
      sample: {"unit", "words"}: what it consists of.
      parameters: {"trained", "frozen"}: their number.
      parts: where each large part of the network runs, and whether it is trained.
      flops: operations of a step over all devices by part, counted from the model's sizes.
      chosen: the mesh asked for, estimated.
      compiled: what the compiler found for that mesh, see `planning.worker.measured`; None if it was not asked.
      fitting: meshes whose estimate fits, most samples a second first; each with one sample for a part of the batch.
      looked_at: how many meshes were estimated.
    """

    system: str
    recipe: str
    topology: Topology
    batch_size: int
    sample: systems.Sample
    parameters: dict[str, int]
    parts: dict[str, str]
    flops: dict[str, int]
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
            "sample": self.sample._asdict(),
            "flops": self.flops | {"total": sum(self.flops.values())},
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
      system: one of `planning.systems.SYSTEMS`.
      topology: such as "v5e:16x16" or "v5p:4x4x4".
      recipe: name or path of a recipe; the published one by default.
      mesh: sizes of the axes, -1 for the devices that are left; the recipe's by default.
      size: of a published network, such as "14b"; the recipe's by default.
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
    asked = systems.module(system)
    place = Topology.parse(topology)
    if not fast:
        compiler.require(topology)
    recipe = recipe or asked.RECIPE
    config = configs.load(recipe, overrides)
    if config.task != asked.TASK:
        raise ConfigError(f"recipe {recipe!r} is of task {config.task!r}: give one of {asked.TASK}")
    asked.resize(config, size=size, frames=frames)
    wanted = dict(config.mesh) if mesh is None else {**dict.fromkeys(AXES, 1), **mesh}
    sizes = dataclasses.asdict(MeshShape(**wanted).resolve(place.devices))
    task = task_of(config)

    def on(sizes: dict[str, int], rows: int | None) -> Estimate:
        _settle(config, sizes, rows)
        return estimate(planned_step(config, abstract_mesh(sizes), task), sizes, place)

    own = parse(config)[1]
    found = [on(each, None) for each in meshes(place.devices, asked.cuts(own))]
    chosen = on(sizes, batch_size)
    step = planned_step(config, abstract_mesh(sizes), task)
    return Plan(
        system=system,
        recipe=recipe,
        topology=place,
        batch_size=step.settings.batch_size,
        sample=asked.sample(own),
        parameters={"trained": size_of(step.target.params), "frozen": size_of(step.target.frozen)},
        parts=asked.parts(step),
        flops=asked.work(step, sizes).flops,
        chosen=chosen,
        compiled=None if fast else compiler.compiled(config, topology, sizes),
        fitting=tuple(ranked(found)),
        looked_at=len(found),
    )


def _settle(config: ConfigDict, sizes: dict[str, int], rows: int | None) -> None:
    """Writes mesh and batch size into the config."""
    config.mesh.update(sizes)
    config.batch_size = rows or sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate
