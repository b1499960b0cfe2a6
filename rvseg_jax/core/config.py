"""Run configs: recipe files, overrides and the typed dataclasses that they are read into.

A recipe is a Python file with `get_config() -> ml_collections.ConfigDict`. What may stand in a config is said
once, by frozen dataclasses: `from_dataclass` makes the `ConfigDict` that a recipe fills in and `to_dataclass`
reads it back, checking every name and every type.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import Precision

T = TypeVar("T")
FLAG_PREFIX = "--config."


class ConfigError(InputError):
    """A recipe, key or value that cannot be used; the message says which one and what to write instead."""


def from_dataclass(section: Any) -> ConfigDict:
    """Locked config with the fields of a dataclass instance (or of a class whose fields all have defaults).

    Fields that hold dataclasses become sections. Fields of type `Precision` are left out: the number format
    is one setting of the whole run, and models get it from there.
    """
    section = section() if isinstance(section, type) else section
    hints = typing.get_type_hints(type(section))
    config = ConfigDict()
    for field in dataclasses.fields(section):
        if hints[field.name] is Precision:
            continue
        value = getattr(section, field.name)
        config[field.name] = from_dataclass(value) if dataclasses.is_dataclass(value) else value
    return config.lock()


def to_dataclass(config: Mapping[str, Any] | ConfigDict, cls: type[T], *, path: str = "") -> T:
    """`config` as an instance of the dataclass `cls`, with every name and type checked.

    An int is taken where a float is asked for and a list where a tuple is; nothing else is converted. Fields
    that the config lacks keep their defaults.

    Args:
      config: the section to read.
      cls: a dataclass whose annotations are plain types, tuples, unions, literals or other dataclasses.
      path: dotted name of the section, for messages.

    Raises:
      ConfigError: for a key that `cls` does not have, a value of another type, or a missing field without
        default.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if hints[f.name] is not Precision}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    values = {}
    for key, value in config.items():
        where = f"{prefix}{key}"
        if key not in fields:
            raise ConfigError(f"unknown config key {where!r}: {nearest(key, list(fields))}")
        values[key] = _typed(value, hints[key], where)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"config key '{prefix}{name}' is missing: set it in the recipe")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config{f' section {path!r}' if path else ''}: {error}") from error


def _typed(value: Any, hint: Any, path: str) -> Any:
    """`value` if the annotation `hint` admits it, with the two conversions that `to_dataclass` names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, (Mapping, ConfigDict)):
        return to_dataclass(value, typing.cast(type, hint), path=path)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _typed(value, option, path)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        raise ConfigError(f"config key {path!r} is {value!r}: choose one of {choices}")
    elif origin is tuple and isinstance(value, (tuple, list)):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            items = zip(value, kinds, strict=True)
            return tuple(_typed(item, kind, f"{path}[{i}]") for i, (item, kind) in enumerate(items))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, bool):
        pass  # isinstance(True, int) holds, but a switch is no count
    elif hint is Any or (isinstance(origin or hint, type) and isinstance(value, origin or hint)):
        return value
    name = hint.__name__ if isinstance(hint, type) and not arguments else str(hint)
    raise ConfigError(f"config key {path!r} is {value!r} of type {type(value).__name__}, but must be {name}")


def load(recipe: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """The config of a recipe, with overrides applied.

    Args:
      recipe: path of a recipe file, or the name of one in `configs/`, such as "tiny/flowrvs_dit".
      overrides: assignments such as "optimizer.lr=1e-4" or "--config.optimizer.lr=1e-4".

    Raises:
      ConfigError: if there is no such recipe, it fails on its own config, or an override does not fit.
    """
    path = recipe_path(recipe)
    spec = importlib.util.spec_from_file_location(f"rvseg_jax_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # every existing .py file has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} is no recipe: it has no function get_config()")
    try:
        config = module.get_config()
    except (AttributeError, KeyError, TypeError) as error:  # ml_collections names the nearest key in these
        raise ConfigError(f"recipe {path}: {str(error).splitlines()[0]}") from error
    return override(config, overrides)


def recipe_path(recipe: str | Path) -> Path:
    """Path of a recipe given by path or by its name in `configs/`, with or without ".py".

    Raises:
      ConfigError: if there is none; the message names the nearest recipes.
    """
    spec = importlib.util.find_spec("rvseg_jax.configs")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package rvseg_jax.configs is not installed: run `make setup`")
    folder = Path(next(iter(spec.submodule_search_locations)))
    name = str(recipe)
    file_name = name if name.endswith(".py") else f"{name}.py"
    for candidate in (Path(file_name), folder / file_name, folder / file_name.removeprefix("configs/")):
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if path.name not in ("__init__.py", "base.py", "meshes.py")
    )
    raise ConfigError(f"there is no recipe {name!r}: {nearest(name.removesuffix('.py'), known)}")


def override(config: ConfigDict, assignments: Iterable[str]) -> ConfigDict:
    """`config` with assignments "a.b=value" applied in place; values are Python literals or plain text.

    Raises:
      ConfigError: for an assignment without "=", an unknown key or a value of another type.
    """
    for assignment in assignments:
        name, equals, text = assignment.removeprefix(FLAG_PREFIX).partition("=")
        if not equals:
            raise ConfigError(f"override {assignment!r} has no value: write {name}=VALUE")
        *sections, key = name.split(".")
        node: Any = config
        for section in sections:
            if not isinstance(node, ConfigDict) or section not in node:
                raise ConfigError(f"unknown config key {name!r}: {nearest(name, list(leaves(config)))}")
            node = node[section]
        if not isinstance(node, ConfigDict) or key not in node:
            raise ConfigError(f"unknown config key {name!r}: {nearest(name, list(leaves(config)))}")
        current = node[key]
        value = _parse(text, current)
        wrong = f"config key {name!r} is of type {type(current).__name__}, not {text!r}"
        if isinstance(value, bool) is not isinstance(current, bool) and current is not None:
            raise ConfigError(wrong)
        try:
            node[key] = value
        except (TypeError, ValueError) as error:
            raise ConfigError(wrong) from error
    return config


def _parse(text: str, current: Any) -> Any:
    """The value that `text` stands for, where a config now holds `current`."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (SyntaxError, ValueError):
        value = text
    if isinstance(current, str) and not isinstance(value, str):
        return text
    if isinstance(current, tuple) and isinstance(value, str):
        return tuple(value.split(",")) if value else ()
    return value


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Flat view {"optimizer.lr": 1e-4, ...} of a config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old, new)} of all values in which two configs differ; None where one lacks the key."""
    a, b = leaves(from_json(to_json(old))), leaves(from_json(to_json(new)))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def to_json(config: ConfigDict) -> str:
    """A config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The config of a JSON text made by `to_json`; lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ConfigDict(restore(json.loads(text))).lock()


def nearest(name: str, known: list[str]) -> str:
    """Advice for an unknown name, as the end of an error message: the nearest known one, else the list.

    The last words of dotted names must be alike, so that a right section alone suggests nothing and `lr`
    finds `optimizer.lr`; a name below a known value suggests that value.
    """

    def likeness(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    last = name.rsplit(".", 1)[-1]
    close = [key for key in known if likeness(last, key.rsplit(".", 1)[-1]) >= 0.5 or name.startswith(f"{key}.")]
    if close:
        return f"did you mean {max(close, key=lambda key: likeness(name, key))!r}?"
    section = name.rpartition(".")[0] + "."
    return f"known are {', '.join([key for key in known if key.startswith(section)] or known)}"
