"""Where samples come from: the protocol of a source, the types of samples, and folders of frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.frames import IMAGE_SUFFIXES, image_size, list_frames, read_image
from rvseg_jax.formats.mevis import Track, union

T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Random access to samples; `tfds.data_source`, lists and ArrayRecord readers satisfy it too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> T_co: ...


@dataclass(frozen=True, eq=False)
class ReferringSample:
    """A clip with a sentence and the masks of what it names.

    Attributes:
      frames: uint8 [T, H, W, 3], RGB.
      masks: bool [T, H, W], union of all objects that the sentence names.
      text: the sentence.
      video: name of the video.
      expression: id of the sentence within the video.
      frame_names: names of the frames, as the dataset has them, without suffix.
      kind: what the sentence tells its target by, where the dataset says so, else "".
      valid: bool [H, W], False where the frames are padding; None where nothing is.
    """

    frames: np.ndarray
    masks: np.ndarray
    text: str
    video: str
    expression: str
    frame_names: tuple[str, ...]
    kind: str
    valid: np.ndarray | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class TrackingSample:
    """A clip with the masks of objects that are to be followed from its first frame.

    Attributes:
      frames: uint8 [T, H, W, 3], RGB.
      masks: bool [N, T, H, W], the visible region of each object; empty in frames where it is hidden.
      ids: number of each object in the dataset, 1 and up.
      video: name of the video.
      frame_names: names of the frames, as the dataset has them, without suffix.
      kind: what makes the clip hard, where the dataset says so, else "".
    """

    frames: np.ndarray
    masks: np.ndarray
    ids: tuple[int, ...]
    video: str
    frame_names: tuple[str, ...]
    kind: str = ""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def sample(self, places: Sequence[int]) -> "TrackingSample":
        """The clip of some frames, repeats allowed."""
        chosen = list(places)
        names = tuple(self.frame_names[place] for place in chosen)
        return replace(self, frames=self.frames[chosen], masks=self.masks[:, chosen], frame_names=names)


class TrackingVideo(Protocol):
    """A video with objects to follow, of which clips are decoded when they are asked for."""

    def __len__(self) -> int:
        """Number of frames."""

    def sample(self, places: Sequence[int]) -> TrackingSample:
        """The clip of some frames, repeats allowed."""


class Frames(Protocol):
    """The frames of one video; a frame is decoded when it is read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the frames, without suffix, in order."""

    def __len__(self) -> int: ...

    def size(self) -> tuple[int, int]:
        """(H, W) of the frames in pixels, from the header of the first."""

    def encoded(self, index: int) -> bytes:
        """The image file of a frame."""

    def read(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Decodes the frames at `indices`, repeats allowed, or all: uint8 [T, H, W, 3], RGB."""


def stacked_frames(frames: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """Frames, each with what to call it, as one array.

    Shapes: frames [H, W, 3] each; result [T, H, W, 3].
    Raises: InputError for frames of different sizes, naming the first that differs.
    """
    stack: list[np.ndarray] = []
    for where, frame in frames:
        if stack and frame.shape != stack[0].shape:
            raise InputError(f"{where} has size {frame.shape[:2]}, the frames before it {stack[0].shape[:2]}")
        stack.append(frame)
    return np.stack(stack)


class FrameFolder:
    """The frames of one video as image files; a file is decoded when its frame is read.

    Names, not counts, say which frames there are: some datasets keep every second or fifth frame under its
    original number. `names` are the names, `paths` the files.
    """

    def __init__(self, folder: str | Path, names: Sequence[str] | None = None) -> None:
        """Opens a folder.

        Args:
          folder: holds one image file a frame.
          names: file names without suffix, in order; None takes every image, in natural order of the names.

        Raises: InputError where the folder or the file of a name is missing, naming it, or nothing is there.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is missing; it should hold one image a frame")
        if names is None:
            self.paths = list_frames(self.folder)
        else:
            self.paths = [self._file(name) for name in names]
            if not self.paths:
                raise InputError(f"no frames of {self.folder} are listed")
        self.names = tuple(path.stem for path in self.paths)

    def _file(self, name: str) -> Path:
        for suffix in IMAGE_SUFFIXES:
            path = self.folder / f"{name}{suffix}"
            if path.is_file():
                return path
        raise InputError(f"{self.folder / name}.jpg is missing (or .png)")

    def __len__(self) -> int:
        return len(self.names)

    def size(self) -> tuple[int, int]:
        """(H, W) of the frames in pixels, from the header of the first."""
        return image_size(self.paths[0])

    def encoded(self, index: int) -> bytes:
        """The file of a frame.

        Raises: InputError where it cannot be read.
        """
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise InputError(f"{self.paths[index]} cannot be read ({error.strerror})") from None

    def read(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Decodes frames.

        Args:
          indices: places in `names`, repeats allowed; None reads all.

        Returns:
          uint8 [T, H, W, 3], RGB.

        Raises: InputError for a file that cannot be decoded, or frames of different sizes, naming the file.
        """
        places = range(len(self)) if indices is None else indices
        return stacked_frames((str(self.paths[place]), read_image(self.paths[place])) for place in places)


@dataclass(frozen=True, eq=False)
class ReferringVideo:
    """A video and a sentence, nothing decoded yet.

    Attributes:
      video: name of the video.
      expression: id of the sentence within the video.
      text: the sentence.
      frames: the video's frames.
      tracks: mask tracks of what the sentence names, run-length coded; None where the truth is withheld.
      anchor: the frame around which a training clip is to be drawn.
    """

    video: str
    expression: str
    text: str
    frames: Frames
    tracks: Sequence[Track] | None
    anchor: int = 0

    @property
    def name(self) -> str:
        """`video/expression`, for messages and file names."""
        return f"{self.video}/{self.expression}"

    def masks(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Union of the masks of the named objects.

        Shapes: result [T, H, W], bool, of the frames at `indices`, or of all.
        Raises: InputError where the truth is withheld.
        """
        if self.tracks is None:
            raise InputError(f"the masks of {self.name} are not public; use a split that has them")
        places = range(len(self.frames)) if indices is None else indices
        return union(self.tracks, places, self.frames.size(), self.name)

    def sample(self, indices: Iterable[int] | None = None, *, masks: np.ndarray | None = None) -> ReferringSample:
        """Decodes the frames at `indices`, or all, and their masks, unless those are at hand.

        Raises: InputError as `masks` and `FrameFolder.read`.
        """
        places = list(range(len(self.frames)) if indices is None else indices)
        return ReferringSample(
            frames=self.frames.read(places),
            masks=self.masks(places) if masks is None else masks,
            text=self.text,
            video=self.video,
            expression=self.expression,
            frame_names=tuple(self.frames.names[place] for place in places),
            kind="",
        )
