"""Videos in one folder and the truth of what moves in another, a file a frame; decoded when it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import motion_masks
from rvseg_jax.formats.frames import list_frames
from rvseg_jax.input_pipeline.motion_videos import MotionSample
from rvseg_jax.input_pipeline.resampling import resize_frames
from rvseg_jax.input_pipeline.sources import FrameFolder

# A file to what moves and, where it knows void, what is valid; bool [H, W] each.
ReadTruth = Callable[[Path], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Layout:
    """How the files of a dataset belong together.

    Attributes:
      by: "name": truth is called as its frame; "order": the n-th file is of the n-th frame; "either": by name where any
        name agrees, else by order.
      complete: whether every frame has to have truth.
      archives: whether truth lies in `.npz` files rather than images.
    """

    by: Literal["name", "order", "either"] = "name"
    complete: bool = False
    archives: bool = False

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """Truth of a frame, see `formats.motion_masks`."""
        return (motion_masks.read_archive if self.archives else motion_masks.read_image)(path)

    def truth_files(self, folder: Path) -> list[Path]:
        """Files of truth in order.

        Raises: InputError where the folder is missing or holds none.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; it should hold the truth of what moves")
        if not self.archives:
            return list_frames(folder)
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise InputError(f"{folder} holds no .npz files")
        return files

    def pair(self, frames: FrameFolder, folder: Path) -> tuple[Path | None, ...]:
        """The file of truth of each frame, None where there is none.

        Raises: InputError where truth has no frame, a frame that needs truth has none, or counts differ that must not.
        """
        files = self.truth_files(folder)
        by_name = {path.stem: path for path in files}
        agree = [name for name in frames.names if name in by_name]
        if self.by == "order" or (self.by == "either" and not agree):
            if len(files) != len(frames):
                raise InputError(f"{folder} holds {len(files)} files for the {len(frames)} frames of {frames.folder}")
            return tuple(files)
        without = [name for name in by_name if name not in set(frames.names)]
        if without:
            raise InputError(f"{by_name[without[0]]} has no frame of that name in {frames.folder}")
        if self.complete and len(agree) < len(frames):
            missing = next(name for name in frames.names if name not in by_name)
            raise InputError(f"{folder / missing}.png is missing: every frame needs truth here")
        return tuple(by_name.get(name) for name in frames.names)


@dataclass(frozen=True)
class MaskedVideo:
    """A video on disk with the truth of what moves; a `MotionVideo`.

    Attributes:
      name: of the video.
      frames: its frames.
      truth: the file of truth of each frame, None where there is none.
      layout: how such files are read.
    """

    name: str
    frames: FrameFolder
    truth: tuple[Path | None, ...]
    layout: Layout

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def annotated(self) -> Sequence[int]:
        """Places of the frames that have truth, rising."""
        return [place for place, path in enumerate(self.truth) if path is not None]

    def sample(self, places: Sequence[int]) -> MotionSample:
        """The clip of some frames, repeats allowed; frames of another size than the truth are brought to it.

        Raises: InputError for a frame or a file of truth that is missing, damaged, or of another size than the others.
        """
        places = list(places)
        frames = self.frames.read(places)
        found = {place: self._read(place) for place in set(places)}
        size = self._size({place: truth[0].shape for place, truth in found.items() if truth is not None})
        frames = resize_frames(frames, size or frames.shape[1:3])
        masks, valid = np.zeros(frames.shape[:3], bool), np.ones(frames.shape[:3], bool)
        for number, place in enumerate(places):
            truth = found[place]
            if truth is not None:
                masks[number] = truth[0]
                if truth[1] is not None:
                    valid[number] = truth[1]
        known = np.array([found[place] is not None for place in places])
        return MotionSample(
            frames,
            masks,
            self.name,
            tuple(self.frames.names[place] for place in places),
            valid=None if valid.all() else valid,
            known=None if known.all() else known,
        )

    def _read(self, place: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        path = self.truth[place]
        return None if path is None else self.layout.read(path)

    def _size(self, sizes: dict[int, tuple[int, ...]]) -> tuple[int, int] | None:
        first = min(sizes, default=None)
        if first is None:
            return None
        for place, size in sizes.items():
            if size != sizes[first]:
                raise InputError(f"{self.truth[place]} has size {size}, {self.truth[first]} {sizes[first]}")
        height, width = sizes[first]
        return height, width


@dataclass(frozen=True)
class Entry:
    """Where a video of a dataset lies.

    Attributes:
      name: of the video.
      frames, truth: folders.
    """

    name: str
    frames: Path
    truth: Path


class MaskedVideos:
    """The videos of a dataset: `source[index]` lists the files of one and decodes nothing.

    Attributes:
      entries: where they lie.
    """

    def __init__(self, label: str, entries: Sequence[Entry], layout: Layout) -> None:
        """Wraps a list.

        Raises: InputError where it is empty.
        """
        if not entries:
            raise InputError(f"{label} holds no videos")
        self.entries = tuple(entries)
        self._label, self._layout = label, layout

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"{self._label} ({len(self)} videos)"

    def __getitem__(self, index: int) -> MaskedVideo:
        """Video `index`.

        Raises: InputError where a folder of it is missing or its files do not belong together.
        """
        entry = self.entries[index]
        frames = FrameFolder(entry.frames)
        return MaskedVideo(entry.name, frames, self._layout.pair(frames, entry.truth), self._layout)


def folders(root: Path) -> list[str]:
    """Names of the folders below `root`, sorted, hidden ones left out.

    Raises: InputError where it is missing or holds none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is missing; it should hold one folder a video")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise InputError(f"{root} holds no folders of videos")
    return found
