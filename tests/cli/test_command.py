"""The `rvseg` command itself: help, subcommands, exit codes, and the smaller subcommands."""

import json
import subprocess
import sys

import pytest

from rvseg_jax.cli import main as cli
from rvseg_jax.cli.dispatch import COMMANDS
from rvseg_jax.cli.predict import parse_bytes
from rvseg_jax.core import compile_cache
from rvseg_jax.core.errors import InputError


def test_without_a_command_help_and_code_2(rvseg):
    result = rvseg("--version")
    assert (result.code, result.out) == (0, "rvseg_jax 0.1.0\n")
    assert cli([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(rvseg, command):
    result = rvseg(command, "--help", system=False)
    assert result.code == 0
    assert result.out.startswith(f"usage: rvseg {command}")


def test_unknown_command_is_one_line(rvseg):
    result = rvseg("segment", system=False)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "invalid choice: 'segment'" in result.err


def test_help_imports_neither_jax_nor_pyav():
    code = "import sys; from rvseg_jax.cli import main; main([]); sys.exit('jax' in sys.modules or 'av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_missing_package_is_not_available(rvseg, monkeypatch):
    monkeypatch.setitem(COMMANDS, "describe", ("tests_no_such_module", "nothing"))
    monkeypatch.setattr("rvseg_jax.cli.dispatch.INSTALLS", {"tests_no_such_module": "pip install it"})
    result = rvseg("describe")
    assert result.code == 3
    assert result.err == "rvseg: error: this needs tests_no_such_module, which is not installed here: pip install it\n"


def test_faults_of_the_program_keep_their_traceback(rvseg, red_things):
    red_things.describe = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        rvseg("describe", "red_things")


def test_traceback_on_demand(rvseg):
    with pytest.raises(InputError):
        rvseg("--traceback", "describe", "nothing")


def test_describe(rvseg):
    assert "red_things" in rvseg("describe").out.splitlines()
    assert "    parameters: 1,234,567" in rvseg("describe", "red_things").out.splitlines()
    described = json.loads(rvseg("describe", "red_things", "--json").out)
    assert described["parts"]["eye"]["licence"] == "MIT"


def test_doctor(rvseg, monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.ENVIRONMENT, str(tmp_path))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    report = json.loads(rvseg("doctor", "--json").out)
    assert report["devices"]["back end"] == "cpu"
    assert report["memory settings"]["on a GPU JAX takes"] == "0.5 of its memory at the start"
    assert all("(" in reason for reason in report["attention"].values())
    assert report["video"]["encodes"] == ["libx264", "aac"]
    assert report["compile cache"]["folder"] == str(tmp_path / "jax")
    result = rvseg("doctor")
    assert (result.code, "no problems found" in result.out) == (0, True)


def test_doctor_reports_problems_with_code_1(rvseg, monkeypatch):
    monkeypatch.setattr("rvseg_jax.cli.doctor._has_codec", lambda name, mode: name != "libx264")
    result = rvseg("doctor")
    assert result.code == 1
    assert "PROBLEM  PyAV cannot write H.264" in result.out


def test_compile_cache_folder(monkeypatch, tmp_path):
    for name in (compile_cache.ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.folder() == tmp_path / ".cache" / "rvseg_jax" / "jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    assert str(compile_cache.folder()) == "/somewhere"
    monkeypatch.setenv(compile_cache.ENVIRONMENT, "off")
    assert compile_cache.folder() is None
    assert compile_cache.enable() is None


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("1024", 1024), ("2k", 2000)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_demo_scores_itself(rvseg, tmp_path):
    result = rvseg("demo", "-o", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert len(summary["sentences"]) == 2
    assert all(0 <= sentence["j_and_f"] <= 1 for sentence in summary["sentences"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"moving_shapes.mp4", "moving_shapes.overlay.mp4", "mevis"} <= names
    assert rvseg("demo", "-o", tmp_path / "out", "--index", "9999").code == 2
