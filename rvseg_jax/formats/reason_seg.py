"""ReasonSeg: images with questions or phrases, and polygons of what is meant.

<root>/<split>/<id>.jpg    with <root> also being <...>/reason_seg/ReasonSeg
<root>/<split>/<id>.json   {"shapes": [{"label", "points": [[x, y], ...]}], "text": [str, ...], "is_sentence": bool}

Splits are train, val and test. Files are UTF-8 or, some of them, cp1252. Shapes are painted from the largest to the
smallest, each over what is there: label "flag" not at all, a label that contains "ignore" as pixels that do not count,
any other as the target. All texts of a file mean the same.
Source: the painting of LISA's and MLLMSeg's loaders, on the image's own (height, width); MLLMSeg's exchanges the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import drawn_polygon

SPLITS = ("train", "val", "test")
TARGET, IGNORE = 1, 255
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Shape:
    """A polygon: its label in lower case, and its points x, y in pixels."""

    label: str
    points: Any


@dataclass(frozen=True)
class Question:
    """What a file says.

    Attributes:
      name: of the image, without suffix.
      image: its file.
      texts: ways to say the same.
      is_sentence: whether they are whole sentences, "long" queries, rather than phrases.
      shapes: polygons in the order of the file, without those labelled "flag".
    """

    name: str
    image: Path
    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[Shape, ...]


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises: InputError for an unknown split or a missing folder.
    """
    if split not in SPLITS:
        raise InputError(f"reason_seg has no split {split!r}; choose from {', '.join(SPLITS)}")
    for folder in (root, root / "ReasonSeg", root / "reason_seg" / "ReasonSeg"):
        if (folder / split).is_dir():
            return folder / split
    raise InputError(f"{root / split} is missing; it should hold <id>.jpg and <id>.json")


def splits_on_disk(root: Path) -> list[str]:
    """The splits whose folders are there."""
    folders = (root, root / "ReasonSeg", root / "reason_seg" / "ReasonSeg")
    return [split for split in SPLITS if any((folder / split).is_dir() for folder in folders)]


def read(root: Path, split: str) -> list[Question]:
    """All questions of a split, by the names of their images.

    Raises: InputError where an image lacks its JSON or the other way round, or a file has another form.
    """
    folder = split_folder(root, split)
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    listed = {path.stem: path for path in sorted(folder.glob("*.json"))}
    for name in sorted(images.keys() ^ listed.keys()):
        have, lack = (images[name], ".json") if name in images else (listed[name], ".jpg")
        raise InputError(f"{have} has no {name}{lack} beside it")
    if not images:
        raise InputError(f"{folder} holds no images; it should hold <id>.jpg and <id>.json")
    return [_question(name, images[name], listed[name]) for name in sorted(images)]


def paint(shapes: tuple[Shape, ...], size: tuple[int, int], where: str) -> np.ndarray:
    """The truth: 0, `TARGET`, or `IGNORE`. Of shapes of one area the one that stands first in the file lies on top.

    Shapes: result uint8 [H, W] of that `size`.
    Raises: InputError, naming `where`, for points that cannot be drawn.
    """
    try:
        masks = [drawn_polygon.fill(shape.points, *size) for shape in shapes]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    order = np.argsort([mask.sum() for mask in masks], kind="stable")[::-1]
    labels = np.zeros(size, np.uint8)
    for place in order:
        labels[masks[place]] = IGNORE if "ignore" in shapes[place].label else TARGET
    return labels


def _question(name: str, image: Path, path: Path) -> Question:
    entry = _read_json(path)
    try:
        shapes = tuple(Shape(str(item["label"]).lower(), item["points"]) for item in entry["shapes"])
        texts, is_sentence = tuple(entry["text"]), entry["is_sentence"]
        if isinstance(entry["text"], str) or not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"text is {entry['text']!r}")
        if not isinstance(is_sentence, bool):
            raise TypeError(f"is_sentence is {is_sentence!r}")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} has not the form of ReasonSeg's file ({error!r})") from None
    return Question(name, image, texts, is_sentence, tuple(shape for shape in shapes if shape.label != "flag"))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path} has not the form of ReasonSeg's file (it holds a {type(found).__name__})")
    return found
