"""What a step of FlowRVS costs on a mesh, counted without compiling: memory, operations, traffic, least time.

Arguments are exact: the state's own shapes and shardings. Everything else is an estimate from the sizes of the
model, held against the compiler in `docs/tpu.md`; it ranks meshes and does not replace compiling the one chosen.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from rvseg_jax.models.umt5 import encoder as umt5
from rvseg_jax.models.wan.flops import TrainingFlops, training_flops
from rvseg_jax.models.wan.vae_config import encode_flops
from rvseg_jax.parallel.mesh import AXES
from rvseg_jax.planning import flowrvs
from rvseg_jax.planning.chips import Topology
from rvseg_jax.planning.step import PlannedStep
from rvseg_jax.systems.flowrvs import memory
from rvseg_jax.systems.flowrvs.training import DiTConfig

# The splash kernel makes the gradients of queries and of keys in two passes; a ring keeps only row sums.
_KERNEL_PRODUCTS = {"splash": 3, "ring": 1}
# Arrays that one block holds in its backward pass, in units of its forward pass's: the recomputed ones, their
# cotangents, and the float32 copies of both under norms and gates. The compiler had 4.59 GiB of temporaries where
# this gives 4.41 (1.3B, 17 frames, fsdp=4).
_BACKWARD_FACTOR = 6
# Times that an encoder level's features go to memory or come from it: two blocks of two convolutions, norms and
# activations, read and written.
_VAE_PASSES = 16


@dataclass(frozen=True)
class Flops:
    """Operations of a whole step over all devices, by part; `recomputed` is the DiT's."""

    dit_forward: int
    dit_backward: int
    recomputed: int
    vae: int
    text: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


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


def meshes(devices: int, config: DiTConfig) -> Iterator[dict[str, int]]:
    """Meshes of so many devices worth a look: seq and tensor divide tokens and heads, fsdp keeps 4 parts or more."""
    for tensor in (1, 2, 4, 8):
        for seq in (1, 2, 4, 8):
            if devices % (seq * tensor) or config.dit.num_attention_heads % tensor or tokens_of(config) % seq:
                continue
            left = devices // (seq * tensor)
            for data in (1, *(size for size in (2, 4, 16, 64) if left % size == 0 and left // size >= 4)):
                yield {"data": data, "fsdp": left // data, "seq": seq, "tensor": tensor}


def tokens_of(config: DiTConfig) -> int:
    """Tokens that the DiT sees of a training clip."""
    frames, height, width = flowrvs.clip(config)
    vae, patch = config.vae, config.dit.patch_size
    cells = ((frames - 1) // vae.temporal_stride + 1, height // vae.spatial_stride, width // vae.spatial_stride)
    return math.prod(cell // size for cell, size in zip(cells, patch, strict=True))


def step_flops(step: PlannedStep, *, kernel: str) -> Flops:
    """Operations of a step over all devices, each counted once.

    Args:
      kernel: attention back end of the DiT.
    """
    config: DiTConfig = step.own
    rows = step.settings.batch_size
    dit = dit_flops(config, kernel)
    vae = 0 if "frames" not in step.batch else 2 * encode_flops(config.vae, *flowrvs.clip(config))
    text = 0 if "ids" not in step.batch else umt5.flops(config.text, config.text_length)
    if "text" in step.target.params:
        text *= 3
    return Flops(rows * dit.forward, rows * dit.backward, rows * dit.recomputed, rows * vae, rows * text)


def dit_flops(config: DiTConfig, kernel: str) -> TrainingFlops:
    """Operations of the DiT for one sample."""
    return training_flops(
        config.dit,
        tokens_of(config),
        config.text_length,
        remat=config.remat,
        kernel_products=_KERNEL_PRODUCTS.get(kernel, 1),
    )


def estimate(step: PlannedStep, sizes: dict[str, int], topology: Topology) -> Estimate:
    """The estimate of one mesh; `step` has been planned on it."""
    chip = topology.chip
    kernel = "ring" if sizes["seq"] > 1 else "splash"
    flops = step_flops(step, kernel=kernel)
    parts = sizes["data"] * sizes["fsdp"]
    inner = sizes["seq"] * sizes["tensor"]
    # Samples are not cut in the autoencoder: devices along seq and tensor repeat its work.
    per_device = flops.vae / parts + (flops.total - flops.vae) / (parts * inner)
    traffic, collective = _traffic(step, sizes), _collective(step, sizes)
    seconds = {
        "compute": per_device / chip.flops,
        "memory": traffic / chip.memory_rate,
        "links": collective / chip.link_rate,
    }
    notes = []
    if inner > 1 and flops.vae:
        notes.append(f"{inner} devices each encode the same clips")
    return Estimate(
        mesh=sizes,
        rows=step.settings.batch_size,
        arguments=_sharded_bytes((step.target, step.batch)),
        temporaries=_temporaries(step, sizes),
        memory=int(chip.memory),
        flops=per_device,
        traffic=traffic,
        collective=collective,
        seconds=seconds,
        notes=tuple(notes),
    )


def ranked(estimates: list[Estimate]) -> list[Estimate]:
    """Those that fit, most samples a second first; of equal ones that with less work beside the bound."""
    fitting = [found for found in estimates if found.fits]
    return sorted(fitting, key=lambda found: (-float(f"{found.rate:.3g}"), sum(found.seconds.values()) / found.rows))


def _sharded_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree)
    )


def _whole_bytes(tree: Any, itemsize: int | None = None) -> int:
    return sum(math.prod(leaf.shape) * (itemsize or _itemsize(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def _itemsize(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _local(step: PlannedStep, sizes: dict[str, int]) -> tuple[int, int, int]:
    """Samples a device, tokens a device, and bytes of an activation."""
    config: DiTConfig = step.own
    samples = max(step.settings.batch_size // step.settings.optimizer.accumulate // (sizes["data"] * sizes["fsdp"]), 1)
    return samples, tokens_of(config) // sizes["seq"], np.dtype(step.settings.formats.compute_dtype).itemsize


def _temporaries(step: PlannedStep, sizes: dict[str, int]) -> int:
    """Gradients, and the larger of what the DiT keeps for its backward pass and the autoencoder's widest place."""
    config: DiTConfig = step.own
    dit = config.dit
    samples, tokens, itemsize = _local(step, sizes)
    width = samples * tokens * dit.inner_dim * itemsize
    block = samples * tokens * itemsize
    block *= memory.DIT_WIDTHS * dit.inner_dim + memory.DIT_FFN_WIDTHS * dit.ffn_dim // sizes["tensor"]
    kept = dit.num_layers * (width if config.remat == "full" else block)
    largest_layer = max(
        (math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(step.target.params["dit"]["blocks"])), default=0
    )
    passes = [kept + _BACKWARD_FACTOR * block + 2 * itemsize * largest_layer // sizes["tensor"]]
    if "frames" in step.batch:
        frames, *size = flowrvs.clip(config)
        passes.append(samples * memory.vae_bytes(step.task.system, frames, (size[0], size[1])))  # type: ignore[attr-defined]
    return _sharded_bytes(step.target.params) + max(passes)


def _traffic(step: PlannedStep, sizes: dict[str, int]) -> float:
    """Bytes between HBM and the chip: weights of every pass, the optimizer's state, and activations."""
    config: DiTConfig = step.own
    samples, tokens, itemsize = _local(step, sizes)
    weights = _whole_bytes(step.target.params, itemsize) / sizes["tensor"]
    frozen = _whole_bytes(step.target.frozen) / sizes["tensor"]
    # Parameters, moments and average are read and written once, gradients too.
    state = 2 * _sharded_bytes((step.target.params, step.target.opt_state, step.target.ema, step.target.params))
    dit = config.dit
    widths = memory.DIT_WIDTHS * dit.inner_dim + memory.DIT_FFN_WIDTHS * dit.ffn_dim
    passes = 3 + (config.remat == "full")
    activations = 2 * passes * dit.num_layers * samples * tokens * itemsize * widths / sizes["tensor"]
    pixels = 0
    if "frames" in step.batch:
        frames, height, width = flowrvs.clip(config)
        pixels = 2 * samples * frames * height * width * config.vae.base_dim * itemsize * _VAE_PASSES
    return 3 * weights + frozen + state + activations + pixels


def _collective(step: PlannedStep, sizes: dict[str, int]) -> float:
    """Bytes that a device sends: weights and gradients along data and fsdp, activations along seq and tensor."""
    config: DiTConfig = step.own
    samples, tokens, itemsize = _local(step, sizes)
    own = _whole_bytes(step.target.params) / sizes["tensor"]
    weights = own * itemsize / 4
    share = lambda axis: (sizes[axis] - 1) / sizes[axis]  # noqa: E731
    gathers = 2 + (config.remat == "full" and config.dit.num_layers > 0)
    fsdp = share("fsdp") * (
        gathers * weights + own + _whole_bytes(step.target.frozen.get("text", {})) / sizes["tensor"]
    )
    data = 2 * share("data") * own / sizes["fsdp"]
    activation = samples * tokens * config.dit.inner_dim * itemsize
    # Two products of each block end in a sum over tensor; forward, again in the backward pass, and its gradients.
    tensor = 2 * share("tensor") * 2 * 3 * config.dit.num_layers * activation
    # Keys and values go around forward and back; their float32 gradients too.
    around = (2 * 2 * 2 + 2 * 4 / itemsize) if config.remat == "full" else (2 * 2 + 2 * 4 / itemsize)
    ring = (sizes["seq"] - 1) * config.dit.num_layers * activation / sizes["tensor"] * around
    return fsdp + data + tensor + ring
