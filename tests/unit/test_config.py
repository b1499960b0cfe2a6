"""Recipes, overrides and the typed dataclasses that they are read into."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.precision import PARITY, Precision


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    trainable: tuple[str, ...] = ("",)
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Model:
    num_layers: int = 2
    width: int | None = None
    precision: Precision = PARITY


@dataclass(frozen=True)
class Run:
    name: str = "x"
    steps: int = 10
    fast: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: it must be at least 1")


def test_dataclass_to_config_and_back():
    config = configs.from_dataclass(Run)
    assert "precision" not in config.model
    assert configs.to_dataclass(config, Run) == Run()


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("--config.optimizer.lr=2", "optimizer.lr", 2.0),
        ("fast=true", "fast", True),
        ("name=12", "name", "12"),
        ("name=a=b", "name", "a=b"),
        ("model.width=64", "model.width", 64),
        ("optimizer.betas=(0.8,0.9)", "optimizer.betas", (0.8, 0.9)),
        ("optimizer.trainable=^dit/,^text/", "optimizer.trainable", ("^dit/", "^text/")),
        ("optimizer.trainable=^dit/", "optimizer.trainable", ("^dit/",)),
    ],
)
def test_override(assignment, key, value):
    config = configs.override(configs.from_dataclass(Run), [assignment])
    assert configs.leaves(config)[key] == value
    configs.to_dataclass(config, Run)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.lrr=1", "unknown config key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        ("optimiser.lr=1", "unknown config key 'optimiser.lr': did you mean 'optimizer.lr'?"),
        ("num_layers=4", "unknown config key 'num_layers': did you mean 'model.num_layers'?"),
        ("model.zzz=4", "unknown config key 'model.zzz': known are model.num_layers, model.width"),
        ("optimizer.lr.x=1", "unknown config key 'optimizer.lr.x': did you mean 'optimizer.lr'?"),
        ("optimizer.lr=fast", "config key 'optimizer.lr' is of type float, not 'fast'"),
        ("steps=1.5", "config key 'steps' is of type int, not '1.5'"),
        ("steps=True", "config key 'steps' is of type int, not 'True'"),
        ("fast=1", "config key 'fast' is of type bool, not '1'"),
        ("optimizer=3", "config key 'optimizer' is of type ConfigDict, not '3'"),
        ("optimizer.lr", "override 'optimizer.lr' has no value: write optimizer.lr=VALUE"),
    ],
)
def test_override_that_does_not_fit(assignment, message):
    with pytest.raises(ConfigError) as error:
        configs.override(configs.from_dataclass(Run), [assignment])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"num_layer": 3}}, "unknown config key 'model.num_layer': did you mean 'num_layers'?"),
        ({"model": {"num_layers": "3"}}, "config key 'model.num_layers' is '3' of type str, but must be int"),
        (
            {"model": {"num_layers": True}},
            "config key 'model.num_layers' is True of type bool, but must be int",
        ),
        ({"model": {"width": 0.5}}, "config key 'model.width' is 0.5 of type float, but must be int | None"),
        ({"optimizer": {"betas": (0.9,)}}, "config key 'optimizer.betas' is (0.9,) of type tuple"),
        (
            {"optimizer": {"kind": "lion"}},
            "config key 'optimizer.kind' is 'lion': choose one of 'adamw', 'sgd'",
        ),
        ({"steps": 0}, "config: steps is 0: it must be at least 1"),
        ({"optimizer": None}, "config key 'optimizer' is None of type NoneType, but must be Optimizer"),
    ],
)
def test_config_that_does_not_fit_the_dataclass(value, message):
    with pytest.raises(ConfigError) as error:
        configs.to_dataclass(value, Run)
    assert str(error.value).startswith(message)


def test_missing_field_without_default():
    @dataclass(frozen=True)
    class Section:
        root: str

    with pytest.raises(ConfigError, match="config key 'data.root' is missing"):
        configs.to_dataclass({}, Section, path="data")


def test_json_round_trip_and_differences():
    config = configs.override(configs.from_dataclass(Run), ["optimizer.trainable=a,b", "model.width=8"])
    read = configs.from_json(configs.to_json(config))
    assert configs.to_dataclass(read, Run) == configs.to_dataclass(config, Run)
    assert configs.differences(read, config) == {}
    assert configs.differences(configs.from_dataclass(Run), config) == {
        "model.width": (None, 8),
        "optimizer.trainable": (("",), ("a", "b")),
    }


RECIPE = """
from ml_collections import ConfigDict
def get_config():
    config = ConfigDict({"optimizer": {"lr": 0.5}}).lock()
    BODY
    return config
"""


def test_recipe_by_path(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.replace("BODY", "config.optimizer.lr = 1"))
    for name in (tmp_path / "recipe.py", str(tmp_path / "recipe")):
        assert configs.load(name, ["optimizer.lr=0.25"]).optimizer.lr == 0.25
        assert configs.load(name).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("body", "named"), [("config.optimizr = 1", "optimizr"), ("config.optimizer.lr = 'x'", "'lr'")]
)
def test_recipe_with_a_wrong_line(tmp_path, body, named):
    (tmp_path / "recipe.py").write_text(RECIPE.replace("BODY", body))
    with pytest.raises(ConfigError, match=named) as error:
        configs.load(tmp_path / "recipe.py")
    assert "\n" not in str(error.value)


def test_file_that_is_no_recipe(tmp_path):
    (tmp_path / "recipe.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no function get_config"):
        configs.load(tmp_path / "recipe.py")


def test_recipe_that_is_not_there():
    with pytest.raises(ConfigError, match="there is no recipe 'tiny/no_such_recipe_at_all'"):
        configs.load("tiny/no_such_recipe_at_all")
