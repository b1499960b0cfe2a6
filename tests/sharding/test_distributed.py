"""Two processes on this machine that work as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvseg_jax import parallel

BATCH = np.arange(24, dtype=np.float32).reshape(8, 3) ** 2  # as in two_processes.py


# Mesh of two_processes.py: the (index, count) of each process, and the rows that a device holds. Without a
# batch axis the batch is not cut, and both processes load all of it.
MESHES = {
    "fsdp": ([[0, 2], [1, 2]], 2),
    "tensor": ([[0, 2], [1, 2]], 4),
    "replicated": ([[0, 1], [0, 1]], 8),
}


def run_two_processes() -> list[dict]:
    """What each of two processes of two_processes.py prints."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "JAX_NUM_CPU_DEVICES": "2",
        }
        command = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    results = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


def test_two_processes_assemble_a_batch_and_agree_with_one():
    found = run_two_processes()
    assert [result["process"] for result in found] == [0, 1]
    assert [result["devices"] for result in found] == [[4, 2], [4, 2]]
    assert [result["main"] for result in found] == [True, False]
    for mesh, (parts, rows) in MESHES.items():
        assert [result[mesh]["part"] for result in found] == parts
        for result in found:
            index, count = result[mesh]["part"]
            assert result[mesh]["shape"] == list(BATCH.shape)
            mine = BATCH[index * len(BATCH) // count : (index + 1) * len(BATCH) // count]
            for local in result[mesh]["local"]:
                assert np.shape(local) == (rows, 3)
                assert any(np.array_equal(local, mine[i : i + rows]) for i in range(0, len(mine), rows))
            # One float32 addition may be ordered differently.
            np.testing.assert_allclose(result[mesh]["mean"], BATCH.mean(0), rtol=1e-6)


def test_a_single_process_is_left_alone(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    parallel.initialize()
    assert parallel.is_main_process()
    parallel.sync("nobody to wait for")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "set without JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
            r"must be 0\.\.1",
        ),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "localhost:1"}, "'two'"),
    ],
)
def test_half_a_configuration_is_an_error(monkeypatch, variables, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parallel.initialize()
