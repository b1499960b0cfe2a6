"""MeViS on disk, versions 1 and 2: a split of the dataset, predictions, and the archive that its server takes.

<split>/JPEGImages/<video>/<frame>.jpg
<split>/meta_expressions.json
<split>/mask_dict.json          absent in `valid`: {annotation id: [RLE or null, one a frame]}
<predictions>/<video>/<expression>/<frame>.png

The truth of a sentence is the union of its annotations; null is an empty mask.

Version 2 has the videos of version 1 and more sentences (33,072 for 28,570), each spoken too; keys that version 1 lacks
are passed over. A sentence may name nothing: its list of annotations is empty (or, without one, its list of objects).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, rle
from rvseg_jax.formats.mask_png import read_mask, write_mask
from rvseg_jax.formats.meta_expressions import Clip, Expression

FRAMES = "JPEGImages"
MASKS = "mask_dict.json"
Track = Sequence[Mapping[str, object] | None]


def read_masks(folder: Path) -> dict[str, Track]:
    """The run-length coded tracks of a split, by annotation id.

    Raises: InputError where the file is missing or holds something else.
    """
    path = folder / MASKS
    tracks = meta_expressions.read_json(path)
    if not isinstance(tracks, dict) or not all(isinstance(track, list) for track in tracks.values()):
        raise InputError(f"{path} does not hold one list of masks an annotation id")
    return tracks


def tracks_of(expression: Expression, tracks: Mapping[str, Track], frames: int, where: str) -> list[Track]:
    """The tracks that a sentence names.

    Args:
      expression: the sentence.
      tracks: all tracks of the split.
      frames: how many frames the video has.
      where: what to call the sentence in messages.

    Raises: InputError where the truth is withheld, a track is missing, or has another number of frames.
    """
    if expression.annotations is None and expression.objects == ():
        return []
    if expression.annotations is None:
        raise InputError(f"{where} has no anno_id: its masks are not public, use a split that has them")
    found = []
    for number in expression.annotations:
        track = tracks.get(str(number))
        if track is None:
            raise InputError(f"{where} names annotation {number}, which {MASKS} lacks")
        if len(track) != frames:
            raise InputError(f"{where}: annotation {number} has {len(track)} masks for {frames} frames")
        found.append(track)
    return found


def union(tracks: Sequence[Track], indices: Iterable[int], size: tuple[int, int], where: str) -> np.ndarray:
    """Masks of some frames, all tracks united.

    Shapes: size (H, W) of the frames; result [T, H, W], bool.
    Raises: InputError for a mask of another size.
    """
    indices = list(indices)
    masks = np.zeros((len(indices), *size), dtype=bool)
    for mask, index in zip(masks, indices, strict=True):
        for track in tracks:
            code = track[index]
            if code is None:
                continue
            decoded = rle.decode(code)
            if decoded.shape != size:
                raise InputError(f"{where}: mask {index} has size {decoded.shape}, the frames {size}")
            mask |= decoded
    return masks


def write_jpegs(folder: Path, names: Sequence[str], frames: np.ndarray) -> None:
    """Writes frames as `<name>.jpg`, with full colour resolution so that small objects keep their colours.

    Shapes: frames [T, H, W, 3], uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=95, subsampling=0)


class SplitWriter:
    """Writes a split of the dataset, video by video; `close` writes the two JSON files."""

    def __init__(self, folder: Path, *, with_masks: bool = True) -> None:
        """Starts in `folder`; `with_masks=False` withholds the truth, as the split `valid` does."""
        self.folder = folder
        self._with_masks = with_masks
        self._clips: dict[str, Clip] = {}
        self._tracks: dict[str, Track] = {}

    def add(
        self,
        video: str,
        names: Sequence[str],
        frames: np.ndarray,
        objects: np.ndarray,
        expressions: Mapping[str, Expression],
    ) -> None:
        """Writes one video.

        Args:
          video: its name.
          names: of the frames, without suffix.
          frames: uint8 [T, H, W, 3].
          objects: bool [N, T, H, W], one mask track an object.
          expressions: sentences by id, with `objects` as indices into the tracks; their annotation ids are
            given here.
        """
        write_jpegs(self.folder / FRAMES / video, names, frames)
        first = len(self._tracks)
        for number, track in enumerate(objects):
            self._tracks[str(first + number)] = [rle.encode(mask) if mask.any() else None for mask in track]
        self._clips[video] = Clip(tuple(names), {key: self._public(item, first) for key, item in expressions.items()})

    def _public(self, item: Expression, first: int) -> Expression:
        if not self._with_masks or item.objects is None:
            return Expression(item.text)
        return replace(item, annotations=tuple(first + number for number in item.objects))

    def close(self) -> None:
        """Writes `meta_expressions.json` and, unless withheld, `mask_dict.json`."""
        meta_expressions.write(self.folder / meta_expressions.FILE_NAME, self._clips)
        if self._with_masks:
            meta_expressions.write_json(self.folder / MASKS, self._tracks)


def write_prediction(folder: Path, video: str, expression: str, names: Sequence[str], masks: np.ndarray) -> None:
    """Writes the masks of one sentence, 0 and 255, under the names of its frames.

    Shapes: masks [T, H, W], bool, at the size of the frames.
    """
    target = folder / video / expression
    target.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        write_mask(target / f"{name}.png", mask)


def read_prediction(folder: Path, video: str, expression: str, names: Sequence[str]) -> np.ndarray:
    """Reads the masks of one sentence; any value but 0 is foreground.

    Shapes: result [T, H, W], bool.
    Raises: InputError for a missing file, naming it, and for masks of different sizes.
    """
    source = folder / video / expression
    paths = [source / f"{name}.png" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} is missing ({len(missing)} of {len(paths)} masks of this sentence are)")
    masks = [read_mask(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise InputError(f"{path} has size {mask.shape}, the masks before it {masks[0].shape}")
    return np.stack(masks)
