"""Ref-YouTube-VOS on disk, and the scheme that Ref-DAVIS17 shares with it.

<root>/meta_expressions/{train,valid,test}/meta_expressions.json
<root>/<split>/JPEGImages/<video>/<frame>.jpg
<root>/<split>/Annotations/<video>/<frame>.png       palette images, value n is object n; withheld but for train
<root>/<split>/meta.json                             {"videos": {video: {"objects": {"1": {"category", "frames"}}}}}

Frames are every fifth of the video under their original numbers: 00000, 00005, ... A sentence of train names one
object as a string, `"obj_id": "1"`; elsewhere it names none. The list of valid holds 507 videos, the 202 of the
benchmark's validation and the 305 of its test set, which has a list of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions
from rvseg_jax.formats.davis import ObjectTrack, read_named_labels, write_label_maps
from rvseg_jax.formats.meta_expressions import Clip, Expression
from rvseg_jax.formats.mevis import FRAMES, write_jpegs

SPLITS = ("train", "valid", "test")
ANNOTATIONS = "Annotations"
OBJECTS = "meta.json"
# Of the published lists.
LISTED_VALID_AND_TEST, VALID = 507, 202


def sentences_file(root: Path, split: str) -> Path:
    """Where the sentences of a split lie."""
    return root / "meta_expressions" / split / meta_expressions.FILE_NAME


def read_clips(root: Path, split: str) -> dict[str, Clip]:
    """Videos and sentences of a split; of valid, those that the list of test does not have too.

    Without a list of test, valid is taken to be as listed.

    Raises: InputError for an unknown split, a missing file, a sentence of train that does not name one object, or
      lists of valid and test that do not fit.
    """
    if split not in SPLITS:
        raise InputError(f"Ref-YouTube-VOS has no split {split!r}; choose from {', '.join(SPLITS)}")
    path = sentences_file(root, split)
    clips = meta_expressions.read(path)
    other = sentences_file(root, "test")
    if split == "valid" and other.is_file():
        test = meta_expressions.read(other)
        listed = len(clips)
        clips = {video: clip for video, clip in clips.items() if video not in test}
        if listed == LISTED_VALID_AND_TEST and len(clips) != VALID:
            raise InputError(f"{path} lists {len(clips)} videos that {other} does not have, expected {VALID}")
    if split == "train":
        check_objects(clips, path)
    return clips


def check_objects(clips: Mapping[str, Clip], path: Path) -> None:
    """Raises InputError where a sentence does not name exactly one object; `path` is the file of the sentences."""
    for video, clip in clips.items():
        for key, item in clip.expressions.items():
            if item.objects is None or len(item.objects) != 1:
                raise InputError(f"{path}: sentence {video}/{key} does not name one object (obj_id)")


def track_of(folder: Path, video: str, clip: Clip, key: str) -> ObjectTrack:
    """The mask track of what a sentence names, nothing read yet; `folder` is that of the split.

    Raises: InputError where the sentence does not name one object.
    """
    objects = clip.expressions[key].objects
    if objects is None or len(objects) != 1:
        raise InputError(f"{video}/{key} does not name one object: its masks are not public, use a split that has them")
    return ObjectTrack(folder / ANNOTATIONS / video, clip.frames, objects[0])


def read_label_maps(root: Path, split: str, video: str, names: Sequence[str]) -> np.ndarray:
    """The truth of a video: value n is object n, 0 background, 255 void.

    Shapes: result [T, H, W], uint8.
    Raises: InputError for a missing file, naming it.
    """
    return np.stack([read_named_labels(root / split / ANNOTATIONS / video, name) for name in names])


def read_objects(folder: Path) -> dict[str, dict[int, tuple[str, ...]]]:
    """`meta.json` of a split's folder: for every video, the objects' numbers with the frames that show them.

    Raises: InputError where the file is missing or has another form.
    """
    path = folder / OBJECTS
    try:
        return {
            video: {int(number): tuple(item.get("frames", ())) for number, item in entry["objects"].items()}
            for video, entry in meta_expressions.read_json(path)["videos"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has not the form of a {OBJECTS} ({error!r})") from None


class SplitWriter:
    """Writes a split video by video; `close` writes the lists."""

    def __init__(self, root: Path, split: str, *, with_masks: bool = True) -> None:
        """Starts at `root`; `with_masks=False` withholds the truth, as all splits but train do."""
        self.root, self.split = root, split
        self._with_masks = with_masks
        self.clips: dict[str, Clip] = {}
        self._objects: dict[str, Any] = {}

    def add(
        self,
        video: str,
        names: Sequence[str],
        frames: np.ndarray,
        labels: np.ndarray,
        expressions: Mapping[str, Expression],
    ) -> None:
        """Writes one video.

        Args:
          video: its name.
          names: of the frames, without suffix.
          frames: uint8 [T, H, W, 3].
          labels: uint8 [T, H, W], object n has value n, from 1 on.
          expressions: sentences by id, each naming one object.
        """
        folder = self.root / self.split
        write_jpegs(folder / FRAMES / video, names, frames)
        if self._with_masks:
            write_label_maps(folder / ANNOTATIONS / video, names, labels)
            self._objects[video] = {"objects": _shown(names, labels, expressions)}
        else:
            expressions = {key: Expression(item.text) for key, item in expressions.items()}
        self.clips[video] = Clip(tuple(names), dict(expressions))

    def close(self) -> None:
        """Writes the sentences and, unless the truth is withheld, the objects."""
        meta_expressions.write(sentences_file(self.root, self.split), self.clips, object_strings=True)
        if self._with_masks:
            meta_expressions.write_json(self.root / self.split / OBJECTS, {"videos": self._objects})


def _shown(names: Sequence[str], labels: np.ndarray, expressions: Mapping[str, Expression]) -> dict[str, Any]:
    numbers = sorted({number for item in expressions.values() for number in item.objects or ()})
    return {
        str(number): {
            "category": "object",
            "frames": [name for name, image in zip(names, labels, strict=True) if (image == number).any()],
        }
        for number in numbers
    }
