"""One of two processes with two CPU devices each; prints what it has found as a line of JSON.

Started by test_distributed.py with JAX's variables for the coordinator in the environment.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax import parallel

# Rows of one batch of eight; each process loads its part of them.
BATCH = np.arange(24, dtype=np.float32).reshape(8, 3) ** 2


def mean_over(shape: dict[str, int]) -> dict:
    """The mean over a batch on a mesh of this shape, and how the batch had been laid out."""
    mesh = parallel.make_mesh(shape)
    index, count = parallel.data_shard(mesh)
    rows = len(BATCH) // count
    batch = parallel.batch_to_global({"video": BATCH[index * rows : (index + 1) * rows]}, mesh)["video"]
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        mean = parallel.pjit(lambda x: jnp.mean(x, 0), in_shardings=batch.sharding, out_shardings=whole)(batch)
    return {
        "part": [index, count],
        "shape": batch.shape,
        "local": [np.asarray(shard.data).tolist() for shard in batch.addressable_shards],
        "mean": np.asarray(mean).tolist(),
    }


def main() -> None:
    parallel.initialize()
    parallel.initialize()  # a second call changes nothing
    found = {
        "process": jax.process_index(),
        "devices": [jax.device_count(), jax.local_device_count()],
        "main": parallel.is_main_process(),
        "fsdp": mean_over({"fsdp": 4}),
        "tensor": mean_over({"data": 2, "tensor": 2}),
        "replicated": mean_over({"fsdp": 1, "tensor": 4}),
    }
    parallel.sync("end")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
