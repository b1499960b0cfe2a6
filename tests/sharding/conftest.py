"""Every test of this folder runs in a process of its own kind: one that has eight CPU devices.

JAX fixes the number of devices when it is first used, and all other tests use one. So a test here is sent by
its id to a child process (`eight.py`), which is started once and serves all tests of this pytest worker.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHILD = "RVSEG_TEST_CHILD"


class Child:
    """A process with eight devices, which runs one test after the other; a new one follows if it dies."""

    def __init__(self, root: Path):
        self.root = root
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        # Without xdist's variables, which would make the child believe that it is a worker of the outer run.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("eight.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.root,
            env={**environment, CHILD: "1", "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        )

    def run(self, test: str) -> dict[str, str]:
        """{"outcome": "passed" | "failed" | "skipped", "text": report}."""
        self.process = self.process or self._start()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(test) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code, self.process = self.process.wait(), None
        return {"outcome": "failed", "text": f"the process with eight devices died with exit code {code}"}

    def close(self) -> None:
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()


@pytest.fixture(scope="session")
def _child(request: pytest.FixtureRequest) -> Iterator[Child]:
    child = Child(request.config.rootpath)
    yield child
    child.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHILD in os.environ:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and isinstance(item, pytest.Function):
            item.fixturenames = ["_child"]  # its own fixtures are set up in the child only


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if CHILD in os.environ:
        return None
    result = pyfuncitem.funcargs["_child"].run(pyfuncitem.nodeid)
    if result["outcome"] == "skipped":
        pytest.skip(result["text"])
    if result["outcome"] != "passed":
        pytest.fail(result["text"], pytrace=False)
    return True
