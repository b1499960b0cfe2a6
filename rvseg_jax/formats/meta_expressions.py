"""`meta_expressions.json`, the sentences of MeViS, Ref-YouTube-VOS, Ref-DAVIS and ReVOS.

{"videos": {video: {"frames": [name, ...], "expressions": {id: {"exp": str, "obj_id": ..., "anno_id": [...]}}}}}

`obj_id` is a list of numbers in MeViS and a string in Ref-YouTube-VOS and Ref-DAVIS; both it and `anno_id` are
absent where the truth is withheld. Names come from a file and become paths: only bare names are accepted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError

FILE_NAME = "meta_expressions.json"


@dataclass(frozen=True)
class Expression:
    """A sentence of a video.

    Attributes:
      text: the sentence as the file has it.
      objects: ids of the objects that it names, None where the file does not say.
      annotations: keys of their masks in the mask file, None where the file does not say; empty for a sentence
        that names nothing.
    """

    text: str
    objects: tuple[int, ...] | None = None
    annotations: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Clip:
    """A video: the names of its frames, without suffix and in order, and its sentences by their ids."""

    frames: tuple[str, ...]
    expressions: Mapping[str, Expression]


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises: InputError, naming the file, where it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; is {path.parent} the right folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, folder included; text stays readable in any script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def bare_name(name: Any, path: Path) -> str:
    """`name` if it is a plain file name.

    Raises: InputError for anything that could lead out of a folder; `path` is the file that it stands in.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{path} names {name!r}, which is no plain file name")
    return name


def read(path: Path) -> dict[str, Clip]:
    """All videos of a file, in its order.

    Raises: InputError where the file is missing or has another form.
    """
    try:
        return {
            bare_name(video, path): Clip(
                tuple(bare_name(name, path) for name in entry["frames"]),
                {bare_name(key, path): _expression(item) for key, item in entry["expressions"].items()},
            )
            for video, entry in read_json(path)["videos"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has not the form of a {FILE_NAME} ({error!r})") from None


def write(path: Path, clips: Mapping[str, Clip], *, object_strings: bool = False) -> None:
    """Writes a file that `read` gives back.

    Args:
      path: where to.
      clips: videos by name.
      object_strings: writes `obj_id` as Ref-YouTube-VOS and Ref-DAVIS do, one number as a string.

    Raises: InputError for a sentence of several objects with `object_strings`.
    """
    videos = {}
    for number, (name, clip) in enumerate(clips.items()):
        expressions = {key: _entry(item, object_strings, f"{name}/{key}") for key, item in clip.expressions.items()}
        videos[name] = {"vid_id": number, "frames": list(clip.frames), "expressions": expressions}
    write_json(path, {"videos": videos})


def _expression(item: Mapping[str, Any]) -> Expression:
    text = item["exp"]
    if not isinstance(text, str):
        raise TypeError(f"exp is {text!r}")
    return Expression(text, _numbers(item.get("obj_id")), _numbers(item.get("anno_id")))


def _numbers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    return tuple(int(number) for number in (value if isinstance(value, list) else [value]))


def _entry(item: Expression, object_strings: bool, where: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"exp": item.text}
    if item.objects is not None:
        if object_strings and len(item.objects) != 1:
            raise InputError(f"{where} names {len(item.objects)} objects; this layout holds one a sentence")
        entry["obj_id"] = str(item.objects[0]) if object_strings else list(item.objects)
    if item.annotations is not None:
        entry["anno_id"] = list(item.annotations)
    return entry
