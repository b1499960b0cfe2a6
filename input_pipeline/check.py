"""Checks datasets on disk: that every file that the lists name is there, can be read, and fits the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import davis, meta_expressions, mevis, ref_davis, rle
from rvseg_jax.formats.frames import image_size
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.sources import FrameFolder

Progress = Callable[[str], None]


@dataclass
class Report:
    """What a check found.

    Attributes:
      videos, frames, sentences, masks: how many were looked at.
      problems: one line each, naming the file or the sentence.
    """

    videos: int = 0
    frames: int = 0
    sentences: int = 0
    masks: int = 0
    problems: list[str] = field(default_factory=list)


def check_mevis(
    folder: Path, *, frames: Path | None = None, decode: bool = False, progress: Progress = lambda video: None
) -> Report:
    """Checks a split of MeViS, or of any dataset in that form.

    Args:
      folder: the split's folder.
      frames: where the videos' folders of frames lie; None: `folder/JPEGImages`.
      decode: decodes every frame; otherwise only its header is read.
      progress: called with each video's name.

    Raises: InputError where one of the lists cannot be read at all.
    """
    clips = meta_expressions.read(folder / meta_expressions.FILE_NAME)
    tracks = mevis.read_masks(folder) if (folder / mevis.MASKS).is_file() else None
    report = Report()
    for video, clip in clips.items():
        progress(video)
        with _noting(report):
            size = _check_frames(report, (frames or folder / mevis.FRAMES) / video, clip, decode)
            for key, expression in clip.expressions.items():
                report.sentences += 1
                if tracks is None:
                    continue
                with _noting(report):
                    where = f"{video}/{key}"
                    for track in mevis.tracks_of(expression, tracks, len(clip.frames), where):
                        _check_track(report, track, size, where)
    return report


def check_ref_davis(
    root: Path, *, split: str = "valid", decode: bool = False, progress: Progress = lambda video: None
) -> Report:
    """Checks a split of Ref-DAVIS17; the parameters are those of `check_mevis`.

    Raises: InputError where the list of sentences cannot be read at all.
    """
    report = Report()
    for video, clip in ref_davis.read_clips(root, split).items():
        progress(video)
        with _noting(report):
            size = _check_frames(report, root / split / "JPEGImages" / video, clip, decode)
            labels = ref_davis.read_label_maps(root, split, video, clip.frames)
            report.masks += len(labels)
            if labels.shape[1:] != size:
                report.problems.append(f"{video}: annotations have size {labels.shape[1:]}, the frames {size}")
            known = set(range(1, int(labels[labels != davis.VOID].max(initial=0)) + 1))
            report.sentences += len(clip.expressions)
            report.problems += _without_object(video, clip, known)
    return report


def _without_object(video: str, clip: Clip, known: set[int]) -> Sequence[str]:
    return [
        f"{video}/{key} names object {number}, which the annotations lack"
        for key, expression in clip.expressions.items()
        for number in expression.objects or ()
        if number not in known
    ]


def _check_frames(report: Report, folder: Path, clip: Clip, decode: bool) -> tuple[int, int]:
    report.videos += 1
    frames = FrameFolder(folder, clip.frames)
    size = frames.size()
    report.frames += len(frames)
    for path in frames.paths:
        with _noting(report):
            found = image_size(path)
            if found != size:
                report.problems.append(f"{path} has size {found}, the first frame {size}")
    if decode:
        for place in range(len(frames)):
            with _noting(report):
                frames.read([place])
    return size


def _check_track(report: Report, track: Track, size: tuple[int, int], where: str) -> None:
    for place, code in enumerate(track):
        report.masks += 1
        if code is not None and _size_of(code) != size:
            report.problems.append(f"{where}: mask {place} has size {_size_of(code)}, the frames {size}")


def _size_of(code: Mapping[str, object]) -> tuple[int, int]:
    rle.counts_of(code)  # raises where size and runs are malformed or do not agree
    height, width = cast(Sequence[int], code["size"])
    return height, width


@contextmanager
def _noting(report: Report) -> Iterator[None]:
    """Turns an `InputError` of the block into a line of the report."""
    try:
        yield
    except InputError as error:
        report.problems.append(str(error))
