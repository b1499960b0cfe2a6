"""Dependencies point one way, and importing the library stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A package may import from itself and from packages of a lower rank.
RANKS = {
    "core": 0,
    "formats": 1,
    "processing": 1,
    "parallel": 2,
    "ops": 3,
    "layers": 4,
    "models": 5,
    "input_pipeline": 5,
    "convert": 6,
    "parts": 6,
    "trackers": 7,
    "systems": 8,
    "evaluation": 9,
    "training": 10,
    "parity": 10,
    "configs": 11,
    "planning": 11,
    "zoo": 0,
    "api": 12,
    "cli": 13,
}
# Reading a clip and writing one share their code.
SIBLINGS = {("formats", "processing"), ("processing", "formats")}
# Conversion needs the abstract trees of models, and systems load converted checkpoints: each imports the other
# inside functions only.
LAZY = {("convert", "systems"), ("parts", "convert")}
NUMPY_ONLY = ("rvseg_jax/processing", "rvseg_jax/formats", "input_pipeline")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "rvseg_jax" else parts[0]


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Modules imported at the top level, or (lazy) anywhere."""
    nodes = ast.walk(tree) if lazy else _eager_nodes(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _eager_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _eager_nodes(child)


def own_packages(modules: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if name.startswith("rvseg_jax.") and name.count(".")} & set(RANKS)


ALL_FILES = files("rvseg_jax") + files("convert") + files("input_pipeline") + files("configs")


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_downwards(path):
    package = package_of(path)
    if package == "__init__":
        return
    tree = ast.parse(path.read_text())
    eager, anywhere = (own_packages(imports(tree, lazy=lazy)) - {package} for lazy in (False, True))
    for other in sorted(anywhere):
        if (package, other) in LAZY:
            assert other not in eager, f"{package} may import {other} inside functions only"
        elif (package, other) not in SIBLINGS:
            assert RANKS[other] < RANKS[package], f"{package} must not import {other}"


def test_systems_do_not_import_each_other():
    shared = {path.stem for path in (ROOT / "rvseg_jax" / "systems").glob("*.py")}
    for folder in (path for path in (ROOT / "rvseg_jax" / "systems").iterdir() if path.is_dir()):
        for path in folder.rglob("*.py"):
            for name in imports(ast.parse(path.read_text()), lazy=True):
                if name.startswith("rvseg_jax.systems."):
                    assert name.split(".")[2] in {folder.name, *shared}, f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", NUMPY_ONLY)
def test_data_code_is_free_of_frameworks(folder):
    for path in files(folder):
        for name in imports(ast.parse(path.read_text()), lazy=True):
            assert name.split(".")[0] not in {"jax", "flax", "torch", "tensorflow"}, f"{path} imports {name}"


def test_nothing_private_or_deprecated_is_used():
    banned = ("jax._src", "jax.experimental.pjit", "jax.experimental.shard_map", "jax.experimental.maps")
    for path in ALL_FILES:
        for name in imports(ast.parse(path.read_text()), lazy=True):
            assert not name.startswith(banned), f"{path} imports {name}"


def test_import_is_light():
    code = "import sys, rvseg_jax; print(*sorted(m for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torch",
        "grain",
        "tensorflow_datasets",
        "ml_collections",
        "transformers",
        "orbax",
        "optax",
        "av",
    }
    assert "rvseg_jax" in loaded and not heavy & set(loaded)


def test_a_wheel_holds_one_package():
    """What setuptools would install: `rvseg_jax` only, with the mapped packages inside."""
    pytest.importorskip("setuptools")
    code = (
        "import setuptools, json\n"
        "import distutils.core\n"
        "found = distutils.core.run_setup('setup.py', stop_after='init')\n"
        "print(json.dumps(found.packages))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    packages = set(json.loads(run.stdout.splitlines()[-1]))
    assert {"rvseg_jax", "rvseg_jax.convert.tables", "rvseg_jax.configs.tiny"} <= packages
    assert "rvseg_jax.input_pipeline.datasets" in packages
    assert {name.split(".")[0] for name in packages} == {"rvseg_jax"}
