"""The documents say what is there: links, commands, recipes, settings, and the code of docs/adding_a_model.md."""

import argparse
import ast
import dataclasses
import re
import shlex
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import rvseg_jax as rv
from rvseg_jax.cli import dispatch
from rvseg_jax.convert import registry
from rvseg_jax.core import config as configs
from rvseg_jax.formats.output import FORMATS
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.golden import Case
from rvseg_jax.systems import base
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.geomotion.config import GeoMotionSystemConfig
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "docs" / "adding_a_model.md"
each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)

CONFIGS = {"flowrvs": FlowRVSConfig, "geomotion": GeoMotionSystemConfig, "mllmseg": MLLMSegSystemConfig}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(path: Path, *languages: str) -> list[str]:
    """Fenced code of these languages."""
    return [code for language, code in FENCE.findall(path.read_text()) if language in languages]


def code_of(path: Path) -> str:
    """All code that is no Python: fenced blocks and spans between backticks."""
    prose = FENCE.sub("", path.read_text())
    return "\n".join([*blocks(path, "", "bash"), *re.findall(r"`([^`]+)`", prose)])


def anchors(path: Path) -> set[str]:
    """Names by which headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> list[list[str]]:
    """Words of every command in a shell block, as its program is given them."""
    found = []
    for code in blocks(path, "", "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
            found.append(words[:end])
    return [words for words in found if words]


def rvseg_lines(path: Path) -> list[list[str]]:
    """Arguments of `rvseg` in every command that calls it, `train.py` or `eval.py`."""
    lines = []
    for words in command_lines(path):
        if words[0] == "rvseg":
            lines.append(words[1:])
        elif words[0] == "python" and words[1] in ("train.py", "eval.py"):
            lines.append([words[1].removesuffix(".py"), *words[2:]])
    return lines


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command's own parser makes of the arguments; fails the test where it refuses them."""
    parser, handler = dispatch._parser(arguments)
    try:
        return parser.parse_args(handler.expand(arguments) if hasattr(handler, "expand") else arguments)
    except SystemExit:
        pytest.fail(f"rvseg refuses: {shlex.join(arguments)}")


@each_document
def test_links_resolve(path):
    links = [link for link in LINK.findall(FENCE.sub("", path.read_text())) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


@each_document
def test_subcommands_exist(path):
    mentioned = set(re.findall(r"(?<![\w/.])rvseg ([a-z_]+)", code_of(path)))
    assert mentioned <= set(dispatch.COMMANDS)


@each_document
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", code_of(path), re.MULTILINE)) <= targets


@each_document
def test_commands_are_taken_by_their_parsers(path):
    for arguments in rvseg_lines(path):
        chosen = parsed(arguments)
        if chosen.command == "train":
            configs.load(chosen.config, chosen.set)
        if chosen.command == "predict":
            names = {pair.partition("=")[0] for pair in chosen.set}
            assert names <= {entry.name for entry in dataclasses.fields(CONFIGS[chosen.system])}
            assert set(chosen.format or ()) <= set(FORMATS)


def test_commands_were_found():
    commands = {arguments[0] for path in DOCS for arguments in rvseg_lines(path)}
    assert {"predict", "convert", "train", "eval", "parity", "data", "demo", "doctor"} <= commands


def test_a_command_with_a_wrong_option_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nrvseg predict clip.mp4 text \\\n  --no-such-option 3 -o out  # comment\n```\n")
    (arguments,) = rvseg_lines(page)
    with pytest.raises(pytest.fail.Exception, match="--no-such-option"):
        parsed(arguments)


@each_document
def test_python_compiles(path):
    for code in blocks(path, "python"):
        ast.parse(code)


def test_readme_names_every_system():
    table = (ROOT / "README.md").read_text().partition("## Systems")[2].partition("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)", table, re.MULTILINE))
    assert {name for name, status in rows.items() if status == "here"} == set(base.names())


def test_every_setting_of_flowrvs_in_the_quickstart_has_its_default():
    table = (ROOT / "docs" / "quickstart.md").read_text().partition("## Choosing settings")[2].partition("\n\n**")[0]
    defaults = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", table, re.MULTILINE))
    config = FlowRVSConfig()
    assert defaults == {name: str(getattr(config, name)) for name in defaults} and len(defaults) == 5


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg") and root.get("viewBox")
    text = "".join(root.itertext())
    for name in re.findall(r"\b[a-z_]+/[a-z_0-9/]*\.py\b", text):
        places = (ROOT, ROOT / "rvseg_jax", ROOT / "rvseg_jax" / "systems")
        assert any((place / name).is_file() for place in places), f"{path.name} names {name}"


@pytest.fixture
def example(torch, monkeypatch):
    """The modules of docs/adding_a_model.md by path of their files, run and importable under their names."""
    del torch  # the original needs it
    files = {code.partition("\n")[0].removeprefix("# "): code for code in blocks(EXAMPLE, "python")}
    modules = {
        "example_torch.py": "example_torch",
        "rvseg_jax/models/example/encoder.py": "rvseg_jax.models.example.encoder",
        "convert/tables/example.py": "rvseg_jax.convert.tables.example",
        "tests/convert/test_tables_example.py": "test_tables_example",
        "tests/parity/test_example.py": "test_example",
        "rvseg_jax/parity/example.py": "rvseg_jax.parity.example",
        "rvseg_jax/systems/example/__init__.py": "rvseg_jax.systems.example",
    }
    assert files.keys() == modules.keys() | {"convert/registry.py"}
    part = eval(compile(files["convert/registry.py"], "registry.py", "eval"), {"Part": registry.Part})
    monkeypatch.setattr(registry, "PARTS", {**registry.PARTS, part.name: part})
    monkeypatch.setitem(kinds._PARTS, part.name, modules["rvseg_jax/parity/example.py"])
    monkeypatch.setitem(base._MODULES, "example", modules["rvseg_jax/systems/example/__init__.py"])
    made = {}
    for path, name in modules.items():
        made[path] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made[path])
        exec(compile(files[path], path, "exec"), made[path].__dict__)
    return made


def test_the_example_is_a_part(torch, example):
    tests = example["tests/convert/test_tables_example.py"]
    for cfg in tests.SIZES.values():
        tests.test_bijection(torch, cfg)
    tests.test_round_trip()
    example["tests/parity/test_example.py"].test_values_and_gradients(torch)


def test_the_example_runs_golden_cases(torch, example):
    original = example["example_torch.py"].Encoder(8, 16, 3)
    x = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
    encoded = original(torch.from_numpy(x)).detach().numpy()
    weights = {key: value.numpy() for key, value in original.state_dict().items()}
    config = {"d_model": 8, "d_ff": 16, "num_layers": 3}
    case = Case(Path("case.json"), "example", "encode", config, {"x": x}, {"encoded": encoded}, weights)
    assert compare(case, kinds.run(case)).passed


@pytest.mark.usefixtures("example")
def test_the_example_is_a_system():
    frames = np.zeros((3, 16, 24, 3), np.uint8)
    frames[:, 4:8, 4:8] = 255
    out = rv.load("example").predict(frames, ["the light", "the square"])
    assert out.masks.shape == (2, 3, 16, 24) and out.masks.sum() == 2 * 3 * 16
    assert rv.describe("example")["system"] == "example"
