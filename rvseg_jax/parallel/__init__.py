"""Device meshes, sharding rules and multi-process set-up."""

from rvseg_jax.parallel.constrain import constrain, current_rules, use_rules
from rvseg_jax.parallel.distributed import batch_to_global, data_shard, initialize, is_main_process, sync
from rvseg_jax.parallel.mesh import AXES, MeshShape, make_mesh, platform
from rvseg_jax.parallel.pjit import pjit
from rvseg_jax.parallel.rules import (
    DEFAULT_RULES,
    Rules,
    Table,
    batch_shardings,
    partition_spec,
    prefixed,
    shardings,
    shardings_like,
)

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "MeshShape",
    "Rules",
    "Table",
    "batch_shardings",
    "batch_to_global",
    "constrain",
    "current_rules",
    "data_shard",
    "initialize",
    "is_main_process",
    "make_mesh",
    "partition_spec",
    "platform",
    "pjit",
    "prefixed",
    "shardings",
    "shardings_like",
    "sync",
    "use_rules",
]
