"""Compiles a step for TPUs that are not there, with libtpu's compiler in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rvseg_jax.core import config as configs
from rvseg_jax.core.errors import CheckFailed, NotAvailable

INSTALL = 'pip install "rvseg_jax[plan]"'
# Without these libtpu asks the metadata server of a TPU machine for its topology, or refuses to start beside another
# process that has loaded it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def require(topology: str) -> None:
    """Raises NotAvailable, naming the command that installs it, without libtpu."""
    if not available():
        raise NotAvailable(f"compiling for {topology} needs libtpu: {INSTALL}, or estimate with --fast")


def compiled(config: ConfigDict, topology: str, mesh: dict[str, int]) -> dict[str, Any]:
    """What the compiler says of the config's step on a mesh over all devices of a topology; see `worker.measured`.

    Raises:
      NotAvailable: without libtpu.
      CheckFailed: if the compiler fails for another reason than memory.
    """
    require(topology)
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "out.json")
        job.write_text(
            json.dumps({"config": configs.to_json(config), "topology": topology, "mesh": mesh, "out": str(out)})
        )
        command = [sys.executable, "-m", "rvseg_jax.planning.worker", str(job)]
        run = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if run.returncode or not out.exists():
            last = (run.stderr.strip().splitlines() or ["no message"])[-1][:500]
            raise CheckFailed(f"the compiler for {topology} ended with exit code {run.returncode}: {last}")
        return json.loads(out.read_text())
