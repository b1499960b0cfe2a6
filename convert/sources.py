"""Finds and opens the files of a torch checkpoint: files, shards, folders, training checkpoints."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.safetensors_file import looks_like_safetensors, read_safetensors
from rvseg_jax.convert.tensors import FileMap, Tensors
from rvseg_jax.convert.torch_zip import pickle_error, read_torch_zip

Weights = Literal["auto", "ema", "model"]
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
CONTAINERS = ("model", "state_dict", "model_state_dict")
JSON_LIMIT = 64 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a checkpoint hold.

    Attributes:
      tensors: named tensors; none if the file holds only an EMA list.
      shadow: EMA parameters without names, in the order of upstream's `module.parameters()`, if chosen.
      files: all files that were read, in a fixed order.
      upstream: upstream's `config.json`, if one lies beside the weights.
      prefix: prefix that stood in front of all keys and was taken off.
    """

    tensors: Tensors
    shadow: tuple[np.ndarray, ...] | None = None
    files: tuple[Path, ...] = ()
    upstream: Mapping[str, Any] | None = None
    prefix: str = ""

    def named(self, order: Sequence[str] | None) -> Tensors:
        """All tensors under their names.

        Args:
          order: torch keys in upstream's parameter order, which name the EMA list.

        Raises:
          ConversionError: if the list and `order` differ in length, or `order` is not known.
        """
        if self.shadow is None:
            return self.tensors
        if order is None:
            raise ConversionError(
                f"{self.files[0]}: the order of its EMA list is not known for this part; use --weights model"
            )
        if len(order) != len(self.shadow):
            raise ConversionError(
                f"{self.files[0]}: its EMA list has {len(self.shadow)} tensors, the model has {len(order)} parameters"
            )
        averaged = dict(zip(order, self.shadow, strict=True))
        return Tensors({**self.tensors, **averaged}, self.tensors.maps)


def open_checkpoint(
    paths: Path | str | Iterable[Path | str], *, weights: Weights = "auto", prefixes: Sequence[str] = ()
) -> Checkpoint:
    """Opens a checkpoint; nothing but headers is read.

    Args:
      paths: a weight file, an index of shards (`*.index.json`), a folder with either, or several files that
        together make one checkpoint.
      weights: which parameters of a training checkpoint to take: the EMA ("ema"), the trained ones
        ("model"), or the EMA if there is one ("auto", as FlowRVS does).
      prefixes: prefixes to take off if they stand in front of all keys, besides torch's `module.`.

    Raises:
      ConversionError: one line that names the file, what is wrong, and what to do.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    parts = [_open_path(Path(path), weights) for path in given]
    if not parts:
        raise ConversionError("no weight file was given")
    whole = parts[0] if len(parts) == 1 else _join(parts)
    if not whole.tensors and not whole.shadow:
        raise ConversionError(f"{whole.files[0]}: holds no tensors")
    return _without_prefixes(whole, ("module.", *prefixes))


def _open_path(path: Path, weights: Weights) -> Checkpoint:
    if "://" in str(path) or str(path).startswith(("gs:/", "s3:/")):
        raise ConversionError(f"{path}: weight files are read by memory map; copy them to a local disk first")
    if path.is_dir():
        return _open_path(_weight_file(path), weights)
    if not path.exists():
        raise ConversionError(f"{path}: no such file or folder")
    if path.name.endswith(".index.json"):
        opened = _open_index(path, weights)
    else:
        opened = _open_file(path, weights)
    config = path.parent / "config.json"
    return replace(opened, upstream=read_json(config) if config.is_file() else None)


def _weight_file(folder: Path) -> Path:
    """The one weight file or index of a folder."""
    indices = sorted(folder.glob("*.index.json"))
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES and path.is_file())
    preferred = [path for path in indices if path.name.endswith(".safetensors.index.json")] or indices
    if not preferred:
        preferred = [path for path in files if path.suffix == ".safetensors"] or files
    if len(preferred) == 1:
        return preferred[0]
    if not preferred:
        raise ConversionError(f"{folder}: holds no weight file ({', '.join(WEIGHT_FILES)}) and no index")
    names = ", ".join(path.name for path in preferred[:4])
    raise ConversionError(f"{folder}: holds several weight files ({names}); name the one to read")


def _open_file(path: Path, weights: Weights) -> Checkpoint:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        saved, file_map = read_torch_zip(path)
        named, shadow = _unwrap(saved, path, weights)
        return Checkpoint(Tensors(named, [file_map]), shadow, (path,))
    if start.startswith(b"\x80"):
        raise pickle_error(path)
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    if looks_like_safetensors(path) or path.suffix == ".safetensors":
        if weights == "ema":
            raise ConversionError(f"{path}: has no EMA weights; use --weights model")
        return Checkpoint(read_safetensors(path), files=(path,))
    if not start:
        FileMap(path)  # raises: the file is empty
    raise ConversionError(f"{path}: neither a safetensors file nor an archive of torch.save")


def _open_index(path: Path, weights: Weights) -> Checkpoint:
    content = read_json(path)
    listed = content.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ConversionError(f"{path}: no index of shards (it has no weight_map)")
    names = sorted(set(listed.values()))
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ConversionError(f"{path}: the shard name {name!r} is no bare file name; it was not opened")
    absent = [name for name in names if not (path.parent / name).is_file()]
    if absent:
        raise ConversionError(
            f"{path}: {len(absent)} of {len(names)} shards are missing ({', '.join(absent[:4])}); fetch them"
        )
    shards = {name: _open_file(path.parent / name, weights) for name in names}
    lost = [key for key, name in listed.items() if key not in shards[name].tensors]
    if lost:
        raise ConversionError(
            f"{path}: {lost[0]} is not in {listed[lost[0]]}, and {len(lost) - 1} more keys are not where it says"
        )
    joined = _join(list(shards.values()))
    unlisted = [key for key in joined.tensors if key not in listed]
    if unlisted:
        raise ConversionError(f"{path}: does not list {unlisted[0]} and {len(unlisted) - 1} more keys of its shards")
    return replace(joined, files=(path, *joined.files))


def _join(parts: Sequence[Checkpoint]) -> Checkpoint:
    tensors: dict[str, np.ndarray] = {}
    for checkpoint in parts:
        if checkpoint.shadow is not None:
            raise ConversionError(f"{checkpoint.files[0]}: a training checkpoint stands alone, give it as one file")
        twice = next((key for key in checkpoint.tensors if key in tensors), None)
        if twice is not None:
            raise ConversionError(f"{checkpoint.files[0]}: {twice} is in another shard too")
        tensors |= checkpoint.tensors
    maps = [file_map for checkpoint in parts for file_map in checkpoint.tensors.maps]
    files = tuple(file for checkpoint in parts for file in checkpoint.files)
    upstream = next((part.upstream for part in parts if part.upstream is not None), None)
    return Checkpoint(Tensors(tensors, maps), files=files, upstream=upstream)


def _unwrap(saved: Any, path: Path, weights: Weights) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...] | None]:
    """Named tensors and EMA list of a saved object: a state dict, or a dict that holds one."""
    if not isinstance(saved, Mapping) or not saved:
        raise ConversionError(f"{path}: holds a {type(saved).__name__}, not a state dict")
    if all(isinstance(value, np.ndarray) for value in saved.values()):
        if weights == "ema":
            raise ConversionError(f"{path}: has no EMA weights; use --weights model")
        return _state_dict(saved, path), None
    name = next((name for name in CONTAINERS if isinstance(saved.get(name), Mapping)), None)
    named = {} if name is None else _state_dict(saved[name], path)
    average = saved.get("ema_model")
    if name is None and average is None:
        known = ", ".join(map(str, list(saved)[:6]))
        raise ConversionError(f"{path}: holds no state dict; its entries are {known}")
    if weights == "model":
        if not named:
            raise ConversionError(f"{path}: has only EMA weights; use --weights ema")
        return named, None
    if average is None:
        if weights == "ema":
            raise ConversionError(f"{path}: has no EMA weights; use --weights model")
        return named, None
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(shadow, list | tuple) or not all(isinstance(item, np.ndarray) for item in shadow):
        raise ConversionError(f"{path}: its ema_model has no list shadow_params; use --weights model")
    return named, tuple(shadow)


def _state_dict(saved: Mapping[Any, Any], path: Path) -> dict[str, np.ndarray]:
    for key, value in saved.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            raise ConversionError(f"{path}: entry {key!r} of its state dict is a {type(value).__name__}, no tensor")
    return dict(saved)


def _without_prefixes(checkpoint: Checkpoint, prefixes: Sequence[str]) -> Checkpoint:
    tensors, taken = strip_prefixes(checkpoint.tensors, prefixes)
    return replace(checkpoint, tensors=Tensors(tensors, checkpoint.tensors.maps), prefix=taken)


def strip_prefixes(tensors: Mapping[str, Any], prefixes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The tensors without the prefixes that stand in front of all keys, and what was taken off."""
    made, taken = dict(tensors), ""
    for prefix in prefixes:
        if made and all(key.startswith(prefix) for key in made):
            made = {key.removeprefix(prefix): value for key, value in made.items()}
            taken += prefix
    return made, taken


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      ConversionError: if the file is too large, is no JSON, or holds no object.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ConversionError(f"{path}: larger than {JSON_LIMIT} bytes, no plausible JSON")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds no JSON object")
    return content
