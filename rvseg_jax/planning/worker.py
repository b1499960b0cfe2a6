"""Compiles one training step for a TPU topology: `python -m rvseg_jax.planning.worker JOB`, in a process of its own.

libtpu reads its settings from the environment when it is loaded, slows every start of JAX and writes to the
terminal; `planning.compile` starts this module with those settings. JOB is a JSON file {"config", "topology",
"mesh", "out"}; the result is written to "out".
"""

import json
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from rvseg_jax.core import config as configs
from rvseg_jax.core.memory import peak_resident_bytes
from rvseg_jax.parallel.mesh import make_mesh
from rvseg_jax.planning.collectives import collectives
from rvseg_jax.planning.step import planned_step, task_of

# The compiler says it in two ways: while it assigns memory, and before that where the temporaries alone are too much.
_REFUSALS = (
    r"[Uu]sed ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm",
    r"required for HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def main(path: str) -> None:
    """Runs a job."""
    job = json.loads(Path(path).read_text())
    config = configs.from_json(job["config"])
    devices = topologies.get_topology_desc(platform="tpu", topology_name=job["topology"]).devices
    mesh = make_mesh(job["mesh"], devices=list(devices))
    with jax.set_mesh(mesh):
        lowered = planned_step(config, mesh, task_of(config)).lower()
        start = time.perf_counter()
        try:
            found = measured(lowered.compile())
        except jax.errors.JaxRuntimeError as error:
            found = over_memory(str(error))
    found["compile_seconds"] = time.perf_counter() - start
    found["host_memory"] = peak_resident_bytes()
    Path(job["out"]).write_text(json.dumps(found))


def measured(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Bytes a device and collectives of a compiled step."""
    sizes: Any = compiled.memory_analysis()
    kinds = {
        kind: {"count": found.count, "bytes": found.bytes}
        for kind, found in collectives(compiled.as_text() or "").items()
    }
    return {
        "fits": True,
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "aliased": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
        # The sum is a safe bound: not all of it lives at once.
        "memory": sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes,
        "peak": getattr(sizes, "peak_memory_in_bytes", None),
        "collectives": kinds,
    }


def over_memory(message: str) -> dict[str, Any]:
    """What the compiler says of a step that does not fit.

    Raises:
      RuntimeError: if it says something else.
    """
    used = next(filter(None, (re.search(pattern, message) for pattern in _REFUSALS)), None)
    if "RESOURCE_EXHAUSTED" not in message and used is None:
        raise RuntimeError(message)
    found: dict[str, Any] = {"fits": False, "message": message.splitlines()[0][:500]}
    if used:
        found["memory"], found["available"] = (round(float(used[i]) * _UNITS[used[i + 1]]) for i in (1, 3))
    return found


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # the caller passes the last line on
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
