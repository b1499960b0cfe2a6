"""Referring videos out of ArrayRecord files or TFDS datasets; `video_rows` says what a row holds."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.frames import decode_image, encoded_size
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.records import Records, description_of
from rvseg_jax.input_pipeline.sampling import anchors
from rvseg_jax.input_pipeline.sources import ReferringVideo, Source, stacked_frames
from rvseg_jax.input_pipeline.video_rows import KIND, Item, VideoRow, from_arrays, from_features, items_of

SUFFIX = ".array_record"


class RecordedVideos:
    """One item a sentence, in the order in which they were written; a row is read when its frames or masks are."""

    def __init__(
        self,
        name: str,
        rows: Source[Mapping[str, Any]],
        parse: Callable[[Any], VideoRow],
        *,
        index: tuple[Sequence[Item], Sequence[int]] | None = None,
        clip_frames: int | None = None,
    ) -> None:
        """Takes the rows of a file.

        Args:
          name: what to call it in messages.
          rows: the rows; pickled for worker processes.
          parse: from what `rows` gives to a row.
          index: the sentences and every row's number of frames; None reads all rows once to find out.
          clip_frames: for training, one item for every `clip_frames`-th frame of a video, with that frame as its
            anchor.

        Raises: InputError for a row of another form.
        """
        self._name, self._rows, self._parse = name, rows, parse
        items, self._frames = index if index is not None else self._index()
        self._items = [
            (item, anchor)
            for item in items
            for anchor in (anchors(self._frames[item.row], clip_frames) if clip_frames else [0])
        ]
        self._last: tuple[int, VideoRow] | None = None

    def _index(self) -> tuple[Sequence[Item], Sequence[int]]:
        items: list[Item] = []
        frames = []
        for number in range(len(self._rows)):
            row = self._parse(self._rows[number])
            items += items_of(number, row)
            frames.append(len(row.frames))
        return items, frames

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return self._name

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return len(self._rows)

    def row(self, number: int) -> VideoRow:
        """Row `number`; the last one is kept, as the sentences of a video follow each other.

        Raises: InputError for a row of another form.
        """
        if self._last is None or self._last[0] != number:
            self._last = number, self._parse(self._rows[number])
        return self._last[1]

    def frame_count(self, index: int) -> int:
        """Frames of the video of item `index`, without reading its row."""
        return self._frames[self._items[index][0].row]

    def __getitem__(self, index: int) -> ReferringVideo:
        """Item `index`, nothing read yet."""
        item, anchor = self._items[index]
        frames = RecordedFrames(self, item.row, self._frames[item.row], item.video)
        tracks = None
        if item.tracks is not None:
            tracks = [RecordedTrack(self, item, number, len(frames)) for number in range(item.tracks)]
        return ReferringVideo(item.video, item.expression, item.text, frames, tracks, anchor)


@dataclass(frozen=True, eq=False)
class RecordedFrames:
    """The frames of a row, as `sources.Frames`."""

    source: RecordedVideos
    number: int
    count: int
    video: str

    def __len__(self) -> int:
        return self.count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the frames, without suffix."""
        return self.source.row(self.number).frame_names

    def size(self, index: int = 0) -> tuple[int, int]:
        """(H, W) in pixels, from the header of the first frame or another."""
        return encoded_size(self.encoded(index), self.where(index))

    def encoded(self, index: int) -> bytes:
        """The image file of a frame."""
        return self.source.row(self.number).frames[index]

    def read(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Decodes frames, see `sources.Frames`.

        Raises: InputError for a frame that cannot be decoded, or frames of different sizes.
        """
        places = range(self.count) if indices is None else indices
        return stacked_frames(
            (self.where(place), decode_image(self.encoded(place), self.where(place))) for place in places
        )

    def where(self, place: int) -> str:
        """What to call a frame in messages."""
        return f"{self.source!r}: {self.video}/{self.names[place]}"


@dataclass(frozen=True, eq=False)
class RecordedTrack(Sequence[Mapping[str, object] | None]):
    """One of the tracks that a sentence names, read when a mask is asked for."""

    source: RecordedVideos
    item: Item
    number: int
    frames: int

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: Any) -> Any:
        row = self.source.row(self.item.row)
        numbers = row.sentences[self.item.place]
        if numbers is None:
            raise InputError(f"{self.source!r}: the index of {row.video}/{self.item.expression} is of another file")
        track: Track = row.tracks[numbers[self.number]]
        return track[index]


def open_records(root: str | Path, split: str, *, clip_frames: int | None = None) -> RecordedVideos:
    """The file `root`, or `<split>.array_record` in the folder `root`, of `rvseg data records`.

    Raises: InputError where there is none, it is not complete, or it holds something else.
    """
    path = Path(root)
    if path.is_dir():
        path = path / f"{split}{SUFFIX}"
    try:
        description = description_of(path)
        if description is None:
            raise InputError(f"no complete records at {path}; write them with `rvseg data records`")
        if description.get("kind") != KIND:
            raise InputError(f"{path} holds {description.get('kind')!r}, expected {KIND!r}; write it again")
        index = [Item(*entry) for entry in description["items"]], description["frames"]
        return RecordedVideos(f"records {path}", Records(path), from_arrays, index=index, clip_frames=clip_frames)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(f"the index beside {path} is damaged ({error!r}); write it again") from None


def open_tfds(root: str | Path, split: str, *, clip_frames: int | None = None) -> RecordedVideos:
    """A split of a TFDS dataset whose features are `video_rows.tfds_features`; all rows are read once.

    Args:
      root: folder of the prepared dataset, with its `dataset_info.json`; the file format has to be ArrayRecord.
      split: as TFDS has it; slices such as "train[:10]" too.
      clip_frames: as `RecordedVideos`.

    Raises: InputError where TFDS cannot open it, or its rows have another form.
    """
    import tensorflow_datasets as tfds

    try:
        rows = tfds.builder_from_directory(str(root)).as_data_source(split)
    except Exception as error:  # TFDS raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{root} cannot be opened as a TFDS dataset with split {split!r} ({reason})") from None
    return RecordedVideos(f"tfds {root} {split}", rows, from_features, clip_frames=clip_frames)
