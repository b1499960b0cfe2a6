"""Images with expressions as users have them: one JSON list, or JSON Lines, of entries

{"image": "photos/1.jpg", "expressions": [{"text": "the red cup", "masks": ...}, ...]}

"image" is a path below the folder of the file. "masks" is what the text names: a polygon's list [x, y, x, y, ...], a
run-length coded mask {"size": [H, W], "counts": ...}, a path of a PNG below the folder (any value but 0 is inside), or
a list of those, whose union counts. null, or an empty list, says that the image does not hold what the text names.
"id" (of the entry and of an expression) and "kind" (of an expression) may be given; every other key is refused, so
that a misspelt one is not passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions
from rvseg_jax.formats.referred_images import relative_name, usable

SUFFIXES = (".jsonl", ".json")
_ENTRY, _EXPRESSION = {"image", "expressions", "id"}, {"text", "masks", "id", "kind"}


@dataclass(frozen=True)
class Said:
    """An expression: its id, text and kind; `coco` a segmentation as COCO has it, `files` paths of PNG masks."""

    key: str
    text: str
    kind: str
    coco: list[Any]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """An image: its name here, its path below the folder, and what is said of it."""

    name: str
    image: str
    expressions: tuple[Said, ...]


def find(root: Path, split: str) -> Path:
    """The file of a split: `root` itself where it is a file, else `<root>/<split>.jsonl` or `.json`.

    Raises: InputError, naming what was looked for.
    """
    if root.is_file():
        return root
    for suffix in SUFFIXES:
        if (root / f"{split}{suffix}").is_file():
            return root / f"{split}{suffix}"
    raise InputError(f"{root} holds no {' and no '.join(split + suffix for suffix in SUFFIXES)}")


def splits_on_disk(root: Path) -> list[str]:
    """The splits whose files are there; "" for a file by itself."""
    if root.is_file():
        return [""]
    return sorted({path.stem for suffix in SUFFIXES for path in root.glob(f"*{suffix}")})


def read(path: Path) -> tuple[list[Entry], dict[str, int], tuple[str, ...]]:
    """Entries of a file, polygons that were left away, and expressions that were left out with them.

    Raises: InputError, naming file and entry, for another form.
    """
    entries, dropped, left_out, names = [], {}, [], set()
    for number, item in enumerate(_items(path), 1):
        where = f"{path}, entry {number}"
        _keys(item, _ENTRY, {"image", "expressions"}, where)
        image = relative_name(item["image"], path)
        # Results are written under these names.
        name = relative_name(str(item.get("id", image.rpartition(".")[0] or image)), path)
        if name in names:
            raise InputError(f'{where}: a second entry is called {name!r}; give each its own "id"')
        names.add(name)
        said = []
        if not isinstance(item["expressions"], list) or not item["expressions"]:
            raise InputError(f"{where}: expressions should be a list with at least one")
        for place, one in enumerate(item["expressions"]):
            found, lost = _said(one, place, path, f"{where}, expression {place + 1}")
            if lost:
                dropped[f"{name}/{found.key}"] = lost
            if lost and not found.coco and not found.files:
                left_out.append(f"{name}/{found.key}")
            else:
                said.append(found)
        if len({one.key for one in said}) != len(said):
            raise InputError(f"{where}: two expressions have one id")
        if said:
            entries.append(Entry(name, image, tuple(said)))
    if not entries:
        raise InputError(f"{path} holds no image with an expression whose masks can be drawn")
    return entries, dropped, tuple(left_out)


def _items(path: Path) -> list[Any]:
    if path.suffix != ".jsonl":
        found = meta_expressions.read_json(path)
        if not isinstance(found, list):
            raise InputError(f"{path} holds a {type(found).__name__}; expected a list of images")
        return found
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    return [_line(text, f"{path}, line {number}") for number, text in enumerate(lines, 1) if text.strip()]


def _line(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, is no JSON ({error})") from None


def _said(item: Any, place: int, path: Path, where: str) -> tuple[Said, int]:
    _keys(item, _EXPRESSION, {"text", "masks"}, where)
    text, masks = item["text"], item["masks"]
    if not isinstance(text, str):
        raise InputError(f"{where}: text is {text!r}, expected a string")
    parts: list[Any] = [] if masks is None else masks if isinstance(masks, list) else [masks]
    if parts and all(type(part) in (int, float) for part in parts):
        parts = [parts]  # one polygon by itself
    for part in parts:
        if not isinstance(part, list | Mapping | str):
            raise InputError(f"{where}: masks hold {part!r}; expected polygons, RLEs or paths of PNGs")
    files = tuple(relative_name(part, path) for part in parts if isinstance(part, str))
    kept, lost = usable([part for part in parts if not isinstance(part, str)])
    key = meta_expressions.bare_name(str(item.get("id", place)), path)
    return Said(key, text, str(item.get("kind", "")), kept, files), lost


def _keys(item: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is {item!r}, expected an object")
    if needed - item.keys():
        raise InputError(f"{where} lacks {', '.join(sorted(needed - item.keys()))}")
    if item.keys() - known:
        raise InputError(f"{where} has {', '.join(sorted(item.keys() - known))}; known are {', '.join(sorted(known))}")
