"""One view of every kind of clip: video file, frame folder, image, array, iterator; read lazily in order."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.frames import IMAGE_SUFFIXES, image_size, list_frames, read_image

# The rate of DAVIS and of cinema, for inputs that do not carry one.
DEFAULT_RATE = Fraction(24)


@dataclass(frozen=True)
class Frame:
    """One frame: image [H, W, 3] uint8 RGB, its name, and its time and duration in seconds."""

    image: np.ndarray
    name: str
    time: Fraction
    duration: Fraction


class Video(ABC):
    """A clip whose frames all have one size; iterating gives images [H, W, 3] uint8 RGB, each once, in order.

    Every iteration starts at the first frame again, except over a one-pass iterator. `count` is the number of
    frames where it is certain, for a file after the first pass, else None; `expected_count` may be a container's
    claim and is for progress bars. `names` and `timestamps` (seconds) grow with the first pass over the clip and are
    complete after it. `path` is the source file or folder, None in memory; `time_base` is the tick in seconds
    that the times of a video file are multiples of.
    """

    name: str
    path: Path | None = None
    height: int
    width: int
    rate: Fraction
    count: int | None = None
    expected_count: int | None = None
    has_audio: bool = False
    time_base: Fraction | None = None

    def __init__(self) -> None:
        self.names: list[str] = []
        self.timestamps: list[Fraction] = []

    @abstractmethod
    def _decode(self) -> Iterator[Frame]:
        """Yield the frames from the first on, as they come."""

    def frames(self) -> Iterator[Frame]:
        """Yield the frames with their names and times.

        Raises: InputError at a frame that cannot be decoded or has another size than the first.
        """
        for index, frame in enumerate(self._decode()):
            if frame.image.shape != (self.height, self.width, 3):
                height, width = frame.image.shape[:2]
                raise InputError(
                    f"{self.name}: frame {frame.name} is {width}x{height} but the first is "
                    f"{self.width}x{self.height}; bring all frames to one size"
                )
            if index == len(self.names):
                self.names.append(frame.name)
                self.timestamps.append(frame.time)
            yield frame
        self.count = self.expected_count = len(self.names)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (frame.image for frame in self.frames())


class FileVideo(Video):
    """A video file, decoded by PyAV: every frame once whatever its spacing in time, turned upright."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.name = path.stem
        _refuse_truncated(path)
        with _open_container(path) as container:
            stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            self.time_base = stream.time_base
            self.expected_count = stream.frames or None
            self.has_audio = bool(container.streams.audio)
        first = next(self._decode(), None)
        if first is None:
            raise InputError(f"{path} has a video stream but no frames; record or export it again")
        self.height, self.width = first.image.shape[:2]

    def _decode(self) -> Iterator[Frame]:
        assert self.path is not None
        index = 0
        with _open_container(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for picture in container.decode(stream):
                    # The decoder conceals lost data with grey or repeated blocks: no mask of that is right.
                    if picture.is_corrupt:
                        raise InputError(_unreadable(self.path, index, "damaged data"))
                    yield self._frame(picture, index)
                    index += 1
            except av.error.FFmpegError as error:
                raise InputError(_unreadable(self.path, index, error.strerror)) from None

    def _frame(self, picture: av.VideoFrame, index: int) -> Frame:
        image: np.ndarray = picture.to_ndarray(format="rgb24")
        # The display matrix turns counterclockwise, as rot90 does.
        image = np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90)))
        if picture.pts is None or picture.time_base is None:
            return Frame(image, f"{index:05d}", index / self.rate, 1 / self.rate)
        duration = picture.duration * picture.time_base if picture.duration else 1 / self.rate
        return Frame(image, f"{index:05d}", picture.pts * picture.time_base, duration)


class ImageVideo(Video):
    """Image files as the frames of a clip, under their file names: a frame folder, or a single image."""

    def __init__(self, path: Path, files: list[Path], rate: Fraction = DEFAULT_RATE) -> None:
        super().__init__()
        self.path = path
        self.name = path.resolve().name if path.is_dir() else path.stem
        self.rate = rate
        self.files = files
        self.count = self.expected_count = len(files)
        self.height, self.width = image_size(files[0])
        for file in files[1:]:  # headers only: a wrong size shows before any frame is computed
            height, width = image_size(file)
            if (height, width) != (self.height, self.width):
                raise InputError(
                    f"{file} is {width}x{height} but {files[0]} is {self.width}x{self.height}; "
                    "bring all frames to one size"
                )

    def _decode(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            yield Frame(read_image(file), file.stem, index / self.rate, 1 / self.rate)


class ArrayVideo(Video):
    """A clip in memory.

    Shapes: frames [T, H, W, 3], uint8 RGB.
    """

    def __init__(self, frames: np.ndarray, rate: Fraction = DEFAULT_RATE, name: str = "clip") -> None:
        super().__init__()
        _check_array(frames, rank=4, what="a clip", shape="[T, H, W, 3]")
        self.array = frames
        self.name = name
        self.rate = rate
        self.count = self.expected_count = len(frames)
        self.height, self.width = frames.shape[1:3]

    def _decode(self) -> Iterator[Frame]:
        for index, image in enumerate(self.array):
            yield Frame(image, f"{index:05d}", index / self.rate, 1 / self.rate)


class IteratorVideo(Video):
    """Frames that come from an iterator and can be read once, with nothing kept.

    Shapes: each frame [H, W, 3], uint8 RGB.
    """

    def __init__(self, frames: Iterable[np.ndarray], rate: Fraction = DEFAULT_RATE, name: str = "clip") -> None:
        super().__init__()
        self.name = name
        self.rate = rate
        self._source: Iterator[np.ndarray] | None = iter(frames)
        self._first = next(self._source, None)
        if self._first is None:
            raise InputError("the iterator gave no frames; give at least one [H, W, 3] uint8")
        _check_array(self._first, rank=3, what="a frame", shape="[H, W, 3]")
        self.height, self.width = self._first.shape[:2]

    def _decode(self) -> Iterator[Frame]:
        if self._source is None or self._first is None:
            raise InputError("the frames of an iterator can be read once; pass a file, a folder or an array")
        first, rest = self._first, self._source
        self._first = self._source = None
        yield Frame(first, "00000", Fraction(0), 1 / self.rate)
        for index, image in enumerate(rest, start=1):
            _check_array(image, rank=3, what=f"frame {index}", shape="[H, W, 3]")
            yield Frame(image, f"{index:05d}", index / self.rate, 1 / self.rate)


def open_video(source: Any, *, rate: Fraction | float | None = None) -> Video:
    """Open a clip: a path to a video file, image or frame folder, an array, an iterable of frames, a `Video`.

    Shapes: array [T, H, W, 3], or each frame of the iterable [H, W, 3]; uint8 RGB.
    `rate` (frames a second) is for inputs without one of their own; a video file keeps its own.
    Raises: InputError where there is no such file, it is no video, or it has no frames.
    """
    frame_rate = DEFAULT_RATE if rate is None else Fraction(rate).limit_denominator(100_000)
    if frame_rate <= 0:
        raise InputError(f"a frame rate of {rate} is not positive")
    if isinstance(source, Video):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), frame_rate)
    if hasattr(source, "__array__"):
        return ArrayVideo(np.asarray(source), frame_rate)
    if isinstance(source, Iterable):
        return IteratorVideo(source, frame_rate)
    raise InputError(
        f"cannot read a clip from {type(source).__name__}; "
        "give a path, a [T, H, W, 3] uint8 array or an iterator of frames"
    )


def _open_path(path: Path, rate: Fraction) -> Video:
    try:
        if path.is_dir():
            return ImageVideo(path, list_frames(path), rate)
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return ImageVideo(path, [path], rate)
        return FileVideo(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _open_container(path: Path) -> Any:
    try:
        # A playlist must not reach other machines.
        container = av.open(str(path), options={"protocol_whitelist": "file"})
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not a video or image that can be decoded ({reason})") from None
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} has no video stream; give a video file, an image or a frame folder")
    return container


def _refuse_truncated(path: Path) -> None:
    """Walk the top-level boxes of an MP4 or MOV file: at a cut the decoder stops early without a word."""
    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if at == 0 and kind not in (b"ftyp", b"wide", b"moov", b"mdat", b"free", b"skip"):
                return
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # the box runs to the end of the file
                return
            if length < 8 or at + length > size:
                raise InputError(
                    f"{path} is cut off: {length} bytes should follow byte {at} but the file ends at {size}; "
                    "copy it again"
                )
            at += length


def _unreadable(path: Path, index: int, reason: str | None) -> str:
    cure = "copy the file again or re-encode it"
    return f"{path}: frame {index} cannot be decoded ({reason or 'unknown'}); {cure}"


def _check_array(array: Any, *, rank: int, what: str, shape: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{what} in memory is {kind}; give {shape} uint8 RGB")
    if array.ndim != rank or array.shape[-1] != 3 or array.size == 0:
        raise InputError(f"{what} in memory has shape {list(array.shape)}; give {shape} uint8 RGB")
