"""Several processes that work as one: start, batches, barriers."""

import logging
import math
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rvseg_jax.parallel.rules import DEFAULT_RULES, Rules, batch_shardings, mesh_axes

logger = logging.getLogger(__name__)

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize() -> None:
    """Joins the other processes of the run, before anything else touches a device.

    Read from the environment:
      JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID: all three, for
        processes started by hand.
      A launcher that JAX knows (TPU pod, Slurm, Open MPI) with more than one process: JAX finds the rest.
      RVSEG_DISTRIBUTED: 1 joins even if no launcher is seen (TPU pods whose hosts are known to the metadata
        server only), 0 never joins.
    A single process, and a second call, are left as they are.

    Raises:
      ValueError: if only some of the three variables are set, or they are no valid numbers.
    """
    wish = os.environ.get("RVSEG_DISTRIBUTED", "")
    if jax.distributed.is_initialized() or wish == "0":
        return
    given = [name for name in (_ADDRESS, _COUNT, _INDEX) if os.environ.get(name)]
    if len(given) == 3:
        count, index = _integer(_COUNT), _integer(_INDEX)
        if not 0 <= index < count:
            raise ValueError(f"{_INDEX}={index} with {_COUNT}={count}: it must be 0..{count - 1}")
        if count > 1:
            jax.distributed.initialize(os.environ[_ADDRESS], num_processes=count, process_id=index)
    elif _COUNT in given or _INDEX in given:
        missing = sorted({_ADDRESS, _COUNT, _INDEX} - set(given))
        raise ValueError(f"{' and '.join(given)} set without {' and '.join(missing)}: set all three or none")
    elif wish == "1" or _launched_processes() > 1:
        jax.distributed.initialize()
    if jax.distributed.is_initialized():
        logger.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())


def is_main_process() -> bool:
    """Whether this process writes logs and summaries."""
    return jax.process_index() == 0


def sync(name: str) -> None:
    """Waits until every process has come to the point `name`; nothing to do in a single process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def data_shard(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> tuple[int, int]:
    """(index, count): this process loads part `index` of `count` of every global batch.

    With a seq or tensor axis across processes, several of them load the same part.

    Raises:
      ValueError: if the parts of two processes overlap without being the same.
    """
    axes = tuple(axis for axis in mesh_axes("batch", rules, "batch") if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    owned: dict[int, set[int]] = {}
    places = NamedSharding(mesh, PartitionSpec(axes)).devices_indices_map((parts,))
    for device in mesh.devices.flat:
        (part,) = places[device]
        owned.setdefault(device.process_index, set()).add(part.start or 0)
    distinct = sorted({tuple(sorted(part)) for part in owned.values()})
    if sum(map(len, distinct)) != parts or len(set(map(len, distinct))) > 1:
        sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"mesh {sizes}: two processes share a part of the batch only partly; move devices to data or fsdp"
        )
    return distinct.index(tuple(sorted(owned[jax.process_index()]))), len(distinct)


def batch_to_global(batch: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """Global arrays on the mesh from the part of the batch that this process has loaded.

    Shapes:
      each leaf [b, ...] of this process, where b is the global batch size / `data_shard(mesh)[1]` -> [B, ...];
      a scalar is the same in every process and stays one.

    Raises:
      ValueError: if the global batch does not divide by the mesh axes of "batch".
    """
    _, count = data_shard(mesh, rules)

    def global_shape(leaf: Any) -> tuple[int, ...]:
        shape = np.shape(leaf)
        return (shape[0] * count, *shape[1:]) if shape else ()

    local = jax.tree.map(np.asarray, batch)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(global_shape(leaf), leaf.dtype), local)
    return jax.tree.map(
        lambda sharding, leaf: jax.make_array_from_process_local_data(sharding, leaf, global_shape(leaf)),
        batch_shardings(abstract, mesh, rules),
        local,
    )


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name}={os.environ[name]!r} is no number") from None


def _launched_processes() -> int:
    """Processes of this run according to the launchers that JAX can read the rest from."""
    hosts = len([host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host])
    tasks = [os.environ.get(name, "") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")]
    return max([hosts, *(int(count) for count in tasks if count.isdigit())])
