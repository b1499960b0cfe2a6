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
from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.training.report import read_rows
from rvseg_jax.training.weights import read_params

BATCH = np.arange(24, dtype=np.float32).reshape(8, 3) ** 2  # as in two_processes.py


# Mesh of two_processes.py: the (index, count) of each process, and the rows that a device holds. Without a
# batch axis the batch is not cut, and both processes load all of it.
MESHES = {
    "fsdp": ([[0, 2], [1, 2]], 2),
    "tensor": ([[0, 2], [1, 2]], 4),
    "replicated": ([[0, 1], [0, 1]], 8),
}


def start_together(command: list[str], count: int, devices: int, **variables: str) -> list[subprocess.Popen]:
    """Starts a command as `count` processes that find each other."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in range(count):
        environment = {**os.environ, **variables, "JAX_NUM_CPU_DEVICES": str(devices)}
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return processes


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    """What each of them prints, once all have ended well."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        found.append(out)
    return found


def run_two_processes() -> list[dict]:
    """What each of two processes of two_processes.py prints."""
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    return [json.loads(out.splitlines()[-1]) for out in outputs(start_together(command, 2, devices=2))]


RECIPE = """
from rvseg_jax.training.config import default

def get_config():
    config = default("toy_regression:Regression")
    config.optimizer.lr = 0.05
    config.ema.enabled = True
    config.mesh.fsdp = 4
    config.checkpoint.every = 4
    config.loader.num_workers = 1
    config.log.update(every=1, tensorboard=False)
    return config
"""


@pytest.mark.slow
def test_two_processes_train_the_numbers_of_one_and_take_over_from_it(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    root = Path(__file__).parent.parent.parent
    toy = str(Path(__file__).parent.parent / "systems")

    def train(workdir: str, steps: int, count: int) -> None:
        command = [sys.executable, str(root / "train.py"), str(tmp_path / "recipe.py")]
        command += ["--workdir", str(tmp_path / workdir), f"steps={steps}"]
        outputs(start_together(command, count, devices=4 // count, PYTHONPATH=toy))

    train("one", 8, count=1)
    train("two", 8, count=2)
    train("moved", 4, count=1)
    train("moved", 8, count=2)
    rows = {name: read_rows(tmp_path / name) for name in ("one", "two", "moved")}
    assert [row["step"] for row in rows["two"]] == list(range(1, 9))
    for name in ("two", "moved"):
        for key in ("loss", "grad_norm", "mean_error"):
            np.testing.assert_allclose([row[key] for row in rows[name]], [row[key] for row in rows["one"]], rtol=1e-5)
        found, expected = (read_params(tmp_path / run)[0] for run in (name, "one"))
        for path, leaf in flatten(expected).items():
            np.testing.assert_allclose(flatten(found)[path], leaf, rtol=1e-5, atol=1e-7)


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
