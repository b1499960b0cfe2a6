"""Golden cases: inputs, weights and outputs of an original implementation, read from files that are not trusted.

A case is `<case>.json` (what the tensors mean) and `<case>.safetensors` (`in/<name>`, `out/<name>`, `w/<torch key>`).
Names inside a JSON are bare names in its own folder.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rvseg_jax.core.errors import InputError
from rvseg_jax.parity.weights_rule import rule_weights

_MAX_JSON_BYTES = 16 * 2**20
_MAX_TENSOR_BYTES = 2 * 2**30
_DEFAULT_BAR = 1e-4


@dataclass(frozen=True)
class Case:
    """One golden case.

    Attributes:
      path: the JSON file.
      part, kind: which runner the case is for.
      config: what builds the model and makes the call, by the original's names.
      inputs, outputs: arrays in the original's layout, without `in/` and `out/`; taps are outputs called `tap/<name>`.
      weights: arrays under the original's state-dict keys.
      components: the cases that a composed model takes its weights from, by their role.
      bars: largest allowed max|a - b| / max|b| of a float output.
    """

    path: Path
    part: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    components: Mapping[str, "Case"] = field(default_factory=dict)
    bars: Mapping[str, float] = field(default_factory=dict)

    def input(self, name: str) -> np.ndarray:
        """The input called `name`.

        Raises:
          InputError: if the case has no such input.
        """
        if name not in self.inputs:
            raise InputError(f"{self.path} has no tensor in/{name}, which kind {self.kind!r} needs")
        return self.inputs[name]

    def component(self, role: str) -> "Case":
        """The case whose weights play `role` in a composed model.

        Raises:
          InputError: if the case names none.
        """
        if role not in self.components:
            raise InputError(f"{self.path} names no {role!r} under weights, which kind {self.kind!r} needs")
        return self.components[role]

    def bar(self, name: str) -> float:
        """Largest allowed relative difference of output `name`; 1e-4 where the case states none."""
        return self.bars.get(name, _DEFAULT_BAR)


def find(paths: Iterable[Path]) -> list[Path]:
    """The JSON files of all cases at or below `paths`, sorted.

    Raises:
      InputError: if a path is neither a folder nor a .json or .safetensors file, or if there is no case at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [file for file in sorted(path.rglob("*.json")) if _is_case(file)]
        elif path.is_file() and path.suffix in (".json", ".safetensors"):
            found.append(path.with_suffix(".json"))
        else:
            raise InputError(f"{path} is neither a folder nor a .json or .safetensors file of a golden case")
    if not found:
        raise InputError(f"no golden case (a .json beside a .safetensors) in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def _is_case(path: Path) -> bool:
    """Whether a JSON found in a folder is a case, be it one whose tensors are lost."""
    if path.with_suffix(".safetensors").is_file():
        return True
    try:
        meta = _read_json(path)
    except InputError:
        return False
    return "part" in meta and "kind" in meta


def read(path: Path) -> Case:
    """Read and check one case, weights included.

    Raises:
      InputError: for anything but a well-formed case: unreadable files, names with a path in them, tensors that are
        missing or differ from their description, files or weights above the size caps.
    """
    return _read(Path(path), depth=0)


def _read(path: Path, depth: int) -> Case:
    meta = _read_json(path)
    own = _read_tensors(path.with_suffix(".safetensors"))
    described = _mapping(meta, "tensors", path)
    tensors: dict[str, np.ndarray] = {}
    for name in dict.fromkeys([*described, *own]):
        info = described.get(name, {})
        if name.startswith(("in/", "out/")):
            tensors[name] = _described(name, info, own, path)
    weights, components = _weights(meta, own, path, depth)
    return Case(
        path=path,
        part=_text(meta, "part", path),
        kind=_text(meta, "kind", path),
        config=_mapping(meta, "config", path),
        inputs={name[3:]: array for name, array in tensors.items() if name.startswith("in/")},
        outputs={name[4:]: array for name, array in tensors.items() if name.startswith("out/")},
        weights=weights,
        components=components,
        bars=_bars(meta, path),
    )


def _described(name: str, info: Any, own: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    if not isinstance(info, Mapping):
        raise InputError(f"{path}: the description of {name!r} is no object")
    tensors = _read_tensors(_beside(path, info["file"])) if "file" in info else own
    if name not in tensors:
        raise InputError(f"{path} describes {name!r}, which is not in its tensors")
    array = tensors[name]
    if "shape" in info and list(array.shape) != info["shape"]:
        raise InputError(f"{path} describes {name!r} as {info['shape']}, but it is {list(array.shape)}")
    if "dtype" in info and str(array.dtype) != info["dtype"]:
        raise InputError(f"{path} describes {name!r} as {info['dtype']}, but it is {array.dtype}")
    return array


def _weights(
    meta: Mapping[str, Any], own: Mapping[str, np.ndarray], path: Path, depth: int
) -> tuple[dict[str, np.ndarray], dict[str, Case]]:
    """The weights in whichever of the five forms the case states them."""
    entry = _mapping(meta, "weights", path)
    if "rule" in entry:
        return _rule_weights(entry, own, path), {}
    if "file" in entry:
        tensors = _read_tensors(_beside(path, entry["file"]))
        weights = {name[2:]: array for name, array in tensors.items() if name.startswith("w/")}
        _check_keys(weights, entry.get("keys"), path)
        return weights, {}
    if depth:
        raise InputError(f"{path} lends its weights to a composed case and so must hold them itself")
    roles = {role: name for role, name in entry.items() if role != "note"}
    return {}, {role: _read(_beside(path, name), depth + 1) for role, name in roles.items()}


def _rule_weights(entry: Mapping[str, Any], own: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    keys = entry.get("keys")
    if keys is None:
        lender = _beside(path, entry.get("keys_from"))
        keys = _mapping(_read_json(lender), "weights", lender).get("keys")
    if not isinstance(keys, Mapping):
        raise InputError(f"{path}: the weights rule needs keys, as {{name: shape}}")
    changes = entry.get("changes", [])
    if not isinstance(changes, list):
        raise InputError(f"{path}: changes of the weights rule must be a list")
    weights = rule_weights(keys, entry.get("seed", 0), changes)
    stored = entry.get("stored", [])
    tensors = _read_tensors(_beside(path, entry["stored_from"])) if "stored_from" in entry else own
    for name in stored:
        if f"w/{name}" not in tensors:
            raise InputError(f"{path}: stored tensor w/{name} is missing")
        weights[name] = tensors[f"w/{name}"]
    return weights


def _check_keys(weights: Mapping[str, np.ndarray], keys: Any, path: Path) -> None:
    if not weights:
        raise InputError(f"{path} says that its weights are stored, but there is no tensor w/*")
    if isinstance(keys, Mapping):
        shapes = {name: list(array.shape) for name, array in weights.items()}
        wrong = sorted(name for name in {*shapes, *keys} if shapes.get(name) != keys.get(name))
        if wrong:
            raise InputError(f"{path}: weights and their key list differ at {', '.join(wrong[:5])}")


def _bars(meta: Mapping[str, Any], path: Path) -> dict[str, float]:
    outputs = _mapping(_mapping(meta, "tolerance", path), "outputs", path)
    bars = {}
    for name, entry in outputs.items():
        bar = entry.get("suggested_rel") if isinstance(entry, Mapping) else None
        if bar is not None:
            if isinstance(bar, bool) or not isinstance(bar, int | float) or not math.isfinite(bar) or bar < 0:
                raise InputError(f"{path}: suggested_rel of {name!r} is {bar!r}, not a finite number of at least 0")
            bars[name] = float(bar)
    return bars


def _beside(path: Path, name: Any) -> Path:
    """The file called `name` in the folder of `path`; anything but a bare name is refused."""
    bare = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")
    if not bare:
        raise InputError(f"{path} names the file {name!r}: only bare names in the same folder are allowed")
    return path.parent / name


def _read_json(path: Path) -> dict[str, Any]:
    _require_file(path, _MAX_JSON_BYTES)
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(meta, dict):
        raise InputError(f"{path} must hold a JSON object")
    return meta


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    _require_file(path, _MAX_TENSOR_BYTES)
    try:
        return load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} is no readable safetensors file: {error}") from error


def _require_file(path: Path, largest: int) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing")
    if path.stat().st_size > largest:
        raise InputError(f"{path} has more than {largest} bytes: this is no golden case")


def _mapping(meta: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = meta.get(name, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name} must be an object, not {type(value).__name__}")
    return value


def _text(meta: Mapping[str, Any], name: str, path: Path) -> str:
    value = meta.get(name)
    if not isinstance(value, str):
        raise InputError(f"{path}: {name} must be a text, not {value!r}")
    return value
