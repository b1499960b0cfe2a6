"""What a check finds, and what the checks of all datasets share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle
from rvseg_jax.formats.frames import image_size
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.sources import FrameFolder

Progress = Callable[[str], None]
# Videos and, where known, sentences by release and split.
Releases = Mapping[str, Mapping[str, tuple[int, int | None]]]


def no_progress(video: str) -> None:
    """For callers that do not show any."""


@dataclass
class Report:
    """What the check of a split found.

    Attributes:
      split: its name, "" where the dataset has none.
      videos, frames, sentences, masks: how many were looked at; images count as videos of one frame.
      problems: one line each, naming the file or the sentence.
      notes: what is worth knowing and no problem.
    """

    split: str = ""
    videos: int = 0
    frames: int = 0
    sentences: int = 0
    masks: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Turns an `InputError` of the block into a problem."""
        try:
            yield
        except InputError as error:
            self.problems.append(str(error))


def check_frames(report: Report, frames: FrameFolder, decode: bool) -> tuple[int, int]:
    """Checks that the frames of a video can be read and have one size, which is returned: (H, W) in pixels.

    Raises: InputError where the first frame cannot be read.
    """
    report.videos += 1
    report.frames += len(frames)
    size = frames.size()
    for path in frames.paths:
        with report.noting():
            found = image_size(path)
            if found != size:
                report.problems.append(f"{path} has size {found}, the first frame {size}")
    if decode:
        for place in range(len(frames)):
            with report.noting():
                frames.read([place])
    return size


def compare(report: Report, name: str, releases: Releases) -> None:
    """Notes which published release a split agrees with, by its numbers of videos and sentences."""
    published = {release: splits[report.split] for release, splits in releases.items() if report.split in splits}
    for release, (videos, sentences) in published.items():
        if report.videos == videos and sentences in (None, report.sentences):
            report.notes.append(f"matches {release} {report.split}")
            return
    if published:
        report.notes.append(
            f"not the whole of a published {name} {report.split}: "
            + "; ".join(f"{release} has {_counts(*counts)}" for release, counts in published.items())
        )


def _counts(videos: int, sentences: int | None) -> str:
    return f"{videos} videos" + ("" if sentences is None else f" and {sentences} sentences")


def check_track(report: Report, track: Track, size: tuple[int, int], where: str) -> None:
    """Checks that every mask of a track is well formed and of the size (H, W) of the frames.

    Raises: InputError for a mask that is malformed.
    """
    for place, code in enumerate(track):
        report.masks += 1
        if code is not None and _size_of(code) != size:
            report.problems.append(f"{where}: mask {place} has size {_size_of(code)}, the frames {size}")


def _size_of(code: Mapping[str, object]) -> tuple[int, int]:
    rle.counts_of(code)  # raises where size and runs are malformed or do not agree
    height, width = cast(Sequence[int], code["size"])
    return height, width
