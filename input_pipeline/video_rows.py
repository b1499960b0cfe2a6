"""Videos with their sentences and masks as rows of a file: the row of ArrayRecord files and of TFDS datasets.

A row is one video:

frame_names   names of the frames, without suffix, in order
frames        the encoded image files of the frames, byte for byte as the dataset has them (JPEG or PNG)
video         name of the video
expressions   ids of its sentences
texts         the sentences
masks         JSON: {"tracks": [[RLE or null, one a frame], ...], "sentences": [[number of a track, ...] or null, ...]}

A sentence's truth is the union of its tracks; an empty list names nothing, null means that the truth is withheld.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.records import write_records
from rvseg_jax.input_pipeline.sources import ReferringVideo, Source

KIND = "referring videos, version 1"


@dataclass(frozen=True)
class VideoRow:
    """A row; the fields are those of the module's table.

    Attributes:
      video, frame_names, frames, expressions, texts: see above.
      tracks: of the objects that any sentence names.
      sentences: numbers of the tracks that each sentence names, None where the truth is withheld.
    """

    video: str
    frame_names: tuple[str, ...]
    frames: tuple[bytes, ...]
    expressions: tuple[str, ...]
    texts: tuple[str, ...]
    tracks: tuple[Track, ...]
    sentences: tuple[tuple[int, ...] | None, ...]

    def features(self) -> dict[str, Any]:
        """The row as TFDS takes it, see `tfds_features`."""
        return {
            "video": self.video,
            "frame_names": list(self.frame_names),
            "frames": list(self.frames),
            "expressions": list(self.expressions),
            "texts": list(self.texts),
            "masks": json.dumps({"tracks": self.tracks, "sentences": self.sentences}),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The row as `write_records` takes it: bytes as uint8, all frames in one array with their ends."""
        row = self.features()
        return {
            "video": np.array(row["video"]),
            "frame_names": np.array(row["frame_names"], dtype=np.str_),
            "frames": np.frombuffer(b"".join(self.frames), np.uint8),
            "frame_ends": np.cumsum([len(frame) for frame in self.frames], dtype=np.int64),
            "expressions": np.array(row["expressions"], dtype=np.str_),
            "texts": np.array(row["texts"], dtype=np.str_),
            "masks": np.frombuffer(row["masks"].encode(), np.uint8),
        }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> VideoRow:
    """The row that `VideoRow.arrays` gave.

    Raises: InputError for a row of another form.
    """
    try:
        frames = arrays["frames"].tobytes()
        ends = arrays["frame_ends"].tolist()
        row = dict(arrays) | {
            "frames": [frames[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)],
            "masks": arrays["masks"].tobytes(),
        }
    except (KeyError, AttributeError) as error:
        raise InputError(f"a record is no row of referring videos ({error!r})") from None
    return from_features(row)


def from_features(row: Mapping[str, Any]) -> VideoRow:
    """The row that `VideoRow.features` gave, strings as text or as UTF-8.

    Raises: InputError for a row of another form.
    """
    try:
        masks = json.loads(_text(row["masks"]))
        found = VideoRow(
            video=_text(row["video"]),
            frame_names=tuple(map(_text, row["frame_names"])),
            frames=tuple(bytes(frame) for frame in row["frames"]),
            expressions=tuple(map(_text, row["expressions"])),
            texts=tuple(map(_text, row["texts"])),
            tracks=tuple(masks["tracks"]),
            sentences=tuple(None if numbers is None else tuple(numbers) for numbers in masks["sentences"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a record is no row of referring videos ({error!r})") from None
    _check(found)
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _check(row: VideoRow) -> None:
    if len(row.frames) != len(row.frame_names) or not row.frames:
        raise InputError(f"{row.video} has {len(row.frames)} frames and {len(row.frame_names)} names")
    if not len(row.expressions) == len(row.texts) == len(row.sentences):
        raise InputError(f"{row.video} has {len(row.expressions)} ids for {len(row.texts)} sentences")
    for track in row.tracks:
        if len(track) != len(row.frames):
            raise InputError(f"{row.video} has a track of {len(track)} masks for {len(row.frames)} frames")
    for key, numbers in zip(row.expressions, row.sentences, strict=True):
        if any(number not in range(len(row.tracks)) for number in numbers or ()):
            raise InputError(f"{row.video}/{key} names a track that is not there")


def row_of(items: Sequence[ReferringVideo]) -> VideoRow:
    """All sentences of one video as a row; frames are taken as they are, not decoded.

    Raises: InputError where a file of it is missing or does not fit.
    """
    first = items[0]
    tracks: dict[str, int] = {}
    sentences: list[tuple[int, ...] | None] = []
    for item in items:
        if item.tracks is None:
            sentences.append(None)
            continue
        codes = [json.dumps([track[place] for place in range(len(item.frames))]) for track in item.tracks]
        sentences.append(tuple(tracks.setdefault(code, len(tracks)) for code in codes))
    return VideoRow(
        first.video,
        tuple(first.frames.names),
        tuple(first.frames.encoded(place) for place in range(len(first.frames))),
        tuple(item.expression for item in items),
        tuple(item.text for item in items),
        tuple(json.loads(code) for code in tracks),
        tuple(sentences),
    )


@dataclass(frozen=True)
class Item:
    """Where a sentence of a file stands, and what can be said of it without reading its row.

    Attributes:
      row: number of its row.
      place: number of the sentence within the row.
      video, expression, text: see `ReferringVideo`.
      tracks: how many tracks the sentence names, None where the truth is withheld.
    """

    row: int
    place: int
    video: str
    expression: str
    text: str
    tracks: int | None


def items_of(number: int, row: VideoRow) -> Iterator[Item]:
    """The sentences of a row; `number` is its place in the file."""
    for place, (key, text, tracks) in enumerate(zip(row.expressions, row.texts, row.sentences, strict=True)):
        yield Item(number, place, row.video, key, text, None if tracks is None else len(tracks))


def write(
    path: Path, source: Source[ReferringVideo], *, progress: Callable[[str], None] = lambda video: None
) -> tuple[int, int]:
    """Writes a source as an ArrayRecord file, one row a video, with an index of its sentences beside it.

    Args:
      path: the file, conventionally `*.array_record`; it appears only when it is complete.
      source: one item a sentence; their order is kept.
      progress: called with each video's name.

    Returns:
      The numbers of videos and of sentences.

    Raises: InputError where a file of the source is missing or does not fit, or nothing is there.
    """
    places: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    index: list[list[Any]] = []
    for number in range(len(source)):
        item = source[number]
        own = places.setdefault(item.video, [])
        counts[item.video] = len(item.frames)
        row = len(places) - 1 if not own else index[own[0]][0]
        tracks = None if item.tracks is None else len(item.tracks)
        index.append([row, len(own), item.video, item.expression, item.text, tracks])
        own.append(number)
    if not index:
        raise InputError(f"{source!r} has no sentences to write")

    def rows() -> Iterable[dict[str, np.ndarray]]:
        for video, numbers in places.items():
            progress(video)
            yield row_of([source[number] for number in numbers]).arrays()

    description = {"kind": KIND, "source": repr(source), "frames": list(counts.values()), "items": index}
    return write_records(path, rows(), description=description), len(index)


def tfds_features() -> Any:
    """The features that a TFDS dataset of such rows declares, a `tfds.features.FeaturesDict`."""
    from tensorflow_datasets import features

    text = features.Text()
    several = features.Sequence(features.Text())
    names = ("frame_names", "frames", "expressions", "texts")
    return features.FeaturesDict({"video": text, "masks": text, **dict.fromkeys(names, several)})
