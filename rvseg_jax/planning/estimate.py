"""What a step costs on a mesh, counted without compiling: memory, operations, traffic, least time.

Arguments are exact: the state's own shapes and shardings. Everything else is an estimate from the sizes of the
model, held against the compiler in `docs/tpu.md`; it ranks meshes and does not replace compiling the one chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jax.sharding import AbstractMesh, AxisType

from rvseg_jax.parallel.mesh import AXES
from rvseg_jax.planning import systems
from rvseg_jax.planning.chips import Topology
from rvseg_jax.planning.step import PlannedStep
from rvseg_jax.planning.systems import Cuts
from rvseg_jax.planning.work import Work, others, sharded_bytes, whole_bytes


@dataclass(frozen=True)
class Estimate:
    """A step on one mesh, per device.

    Attributes:
      mesh: sizes of the axes.
      rows: samples of a step over all devices.
      arguments: bytes of state and batch, exact.
      temporaries: bytes beside them.
      memory: bytes that a program may use on the chip.
      flops: operations, with those that several devices repeat.
      traffic: bytes between HBM and the chip.
      collective: bytes sent to other devices.
      seconds: {"compute", "memory", "links"}: time of each at the chip's peak.
      notes: what a reader should know of this mesh.
    """

    mesh: dict[str, int]
    rows: int
    arguments: int
    temporaries: int
    memory: int
    flops: float
    traffic: float
    collective: float
    seconds: dict[str, float]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the chip's memory."""
        return self.arguments + self.temporaries <= self.memory

    @property
    def bound(self) -> float:
        """Seconds that the step takes at least; the three kinds of work may overlap."""
        return max(self.seconds.values())

    @property
    def rate(self) -> float:
        """Samples a second at most, over all devices."""
        return self.rows / self.bound


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """A mesh of no devices, for shardings."""
    return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def meshes(devices: int, cuts: Cuts) -> Iterator[dict[str, int]]:
    """Meshes of so many devices worth a look: seq and tensor divide tokens and heads, fsdp keeps 4 parts or more."""
    for tensor in (1, 2, 4, 8):
        for seq in (1, 2, 4, 8):
            if devices % (seq * tensor) or cuts.heads % tensor or cuts.tokens % seq:
                continue
            left = devices // (seq * tensor)
            for data in (1, *(size for size in (2, 4, 16, 64) if left % size == 0 and left // size >= 4)):
                yield {"data": data, "fsdp": left // data, "seq": seq, "tensor": tensor}


def estimate(step: PlannedStep, sizes: dict[str, int], topology: Topology) -> Estimate:
    """The estimate of one mesh; `step` has been planned on it."""
    chip = topology.chip
    work = systems.of_task(step.settings.task).work(step, sizes)
    parts = sizes["data"] * sizes["fsdp"]
    inner = sizes["seq"] * sizes["tensor"]
    total, repeated = sum(work.flops.values()), sum(work.flops[part] for part in work.repeated)
    per_device = repeated / parts + (total - repeated) / (parts * inner)
    traffic, collective = _traffic(step, work, sizes), _collective(step, work, sizes)
    seconds = {
        "compute": per_device / chip.flops,
        "memory": traffic / chip.memory_rate,
        "links": collective / chip.link_rate,
    }
    return Estimate(
        mesh=sizes,
        rows=step.settings.batch_size,
        arguments=sharded_bytes((step.target, step.batch)),
        temporaries=sharded_bytes(step.target.params) + work.temporaries,
        memory=int(chip.memory),
        flops=per_device,
        traffic=traffic,
        collective=collective,
        seconds=seconds,
        notes=tuple(f"{inner} devices each {what}" for what in work.repeated.values() if inner > 1),
    )


def ranked(estimates: list[Estimate]) -> list[Estimate]:
    """Those that fit, most samples a second first; of equal ones that with less work beside the bound."""
    fitting = [found for found in estimates if found.fits]
    return sorted(fitting, key=lambda found: (-float(f"{found.rate:.3g}"), sum(found.seconds.values()) / found.rows))


def _traffic(step: PlannedStep, work: Work, sizes: dict[str, int]) -> float:
    """Bytes between HBM and the chip: weights of every pass, the optimizer's state, and activations."""
    weights = whole_bytes(step.target.params, step.itemsize) / sizes["tensor"]
    # Parameters, moments and average are read and written once, gradients too.
    state = 2 * sharded_bytes((step.target.params, step.target.opt_state, step.target.ema, step.target.params))
    return 3 * weights + work.read + state + sum(run.traffic for run in work.runs) + work.traffic


def _collective(step: PlannedStep, work: Work, sizes: dict[str, int]) -> float:
    """Bytes that a device sends: weights and gradients along data and fsdp, activations along seq and tensor."""
    own = whole_bytes(step.target.params) / sizes["tensor"]
    weights = own * step.itemsize / 4
    fsdp = others(sizes, "fsdp") * (work.gathers * weights + own + work.gathered)
    data = 2 * others(sizes, "data") * own / sizes["fsdp"]
    return fsdp + data + sum(run.sent(sizes) for run in work.runs)
